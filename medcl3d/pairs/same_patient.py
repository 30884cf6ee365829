"""Two scans of one patient, at corresponding or independent positions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from medcl3d.config.field_types import NonNegative
from medcl3d.core.collection import Collection
from medcl3d.core.errors import DataError
from medcl3d.core.geometry import ViewSpec
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation, related
from medcl3d.pairs import PAIRS, StrategyTraits
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.boxes import random_box
from medcl3d.pairs.matching import corresponding_crops
from medcl3d.pairs.sessions import ONLY_SESSION, compare_sessions


@PAIRS.register("same_patient")
@dataclass(frozen=True, kw_only=True)
class SamePatient:
    """Positives are crops of different scans of one patient.

    position      matched: both crops at the same position, within `jitter_mm` along each axis. P = 1 within
                  the sample only; the patient's other crops are ignored, since they are elsewhere in the
                  body.
                  free: each at any position in the body. P = 1 for all crops of the patient
    jitter_mm     largest offset of matched crops along each axis
    same_session  whether the second scan may be of the anchor's session: any, only, never. An empty session
                  is unknown: such a scan is paired with `any` only

    Other patients repel. Positions are matched in world mm if the scans share a frame, else in body
    coordinates. If the second scan does not reach a position, another is drawn, up to 20 times; then the
    nearest one is used.
    Source: MICLe (Azizi et al., ICCV 2021), MedAug (Vu et al., MLHC 2021).
    """

    position: Literal["matched", "free"] = "matched"
    jitter_mm: NonNegative = 0.0
    same_session: Literal["any", "only", "never"] = "any"

    traits: ClassVar[StrategyTraits] = StrategyTraits(
        signal_columns=("patient",), constant_across=("patient",)
    )

    def anchors(self, collection: Collection) -> Anchors:
        """Scans whose patient has another scan to pair them with."""
        if "session" not in collection.table and self.same_session != "any":
            raise DataError(
                f"same_patient: same_session = {self.same_session}: the manifest has no column session; "
                "add it, or set any"
            )
        partners = [len(self.partners(collection, scan)) for scan in range(len(collection))]
        ids = np.flatnonzero(partners)
        what = {"any": "", "only": " in the same session", "never": " in another session"}[self.same_session]
        left_out = +Counter({f"its patient has no other scan{what}": len(collection) - len(ids)})
        notes: tuple[str, ...] = ()
        if self.same_session == "only" and set(collection.texts("session")) == {ONLY_SESSION}:
            notes = (
                "same_patient: same_session = only has no effect: all scans have the session "
                f"{ONLY_SESSION}, the default "
                "of a table without that column; add the column if a patient was scanned on several days",
            )
        remedy = "choose overlapping_crops, or check the column patient of the manifest"
        return Anchors(ids, left_out, notes).require("same_patient", remedy)

    def partners(self, collection: Collection, scan: int) -> Int[np.ndarray, " m"]:
        """``Int[n]``: the scans that a scan may be paired with."""
        rows = collection.sharing(scan, "patient")
        fits = rows != scan
        if self.same_session != "any":
            same, other = compare_sessions(collection, scan, rows)
            fits &= same if self.same_session == "only" else other
        found: np.ndarray = rows[fits]
        return found

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """A crop of scan `anchor` and one of another scan of its patient."""
        other = int(rng.choice(self.partners(collection, anchor)))
        if self.position == "free":
            first, second = (ViewSpec(scan, random_box(collection, scan, rng)) for scan in (anchor, other))
            return first, second
        return corresponding_crops(collection, anchor, other, self.jitter_mm, rng)

    def relate(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """P = 1 within the sample (matched) or patient (free); other patients repel; the rest is ignored."""
        same_patient = rows.patient[:, None] == cols.patient
        same_sample = rows.sample[:, None] == cols.sample
        positive = same_patient if self.position == "free" else same_patient & same_sample
        return related(rows, cols, positive, ~same_patient)
