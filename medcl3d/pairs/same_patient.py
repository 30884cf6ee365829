"""Two scans of one patient, at the same place of the body or anywhere."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from medcl3d.data.collection import Collection
from medcl3d.errors import DataError
from medcl3d.pairs import PAIRS
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.boxes import random_box
from medcl3d.pairs.matching import matched_crops
from medcl3d.registry import NonNegative
from medcl3d.types import Keys, Relation, ViewSpec, related


@PAIRS.register("same_patient")
@dataclass(frozen=True, kw_only=True)
class SamePatient:
    """Positives are crops of different scans of one patient.

    position      matched: both at one place, within `jitter_mm` along each axis; free: each anywhere in the body
    same_session  whether the second scan may be of the anchor's session: any, only, never

    Places are matched in world mm where the scans share a frame, else in body coordinates. Where the second scan
    does not reach a place, another is drawn, and in the end the nearest it has is taken.
    Source: MICLe (Azizi et al., ICCV 2021), MedAug (Vu et al., MLHC 2021).
    """

    position: Literal["matched", "free"] = "matched"
    jitter_mm: NonNegative = 0.0
    same_session: Literal["any", "only", "never"] = "any"

    informative = ("patient",)
    constant_across = ("patient",)

    def anchors(self, collection: Collection) -> Anchors:
        """Scans whose patient has another scan to pair them with."""
        if "session" not in collection.table and self.same_session != "any":
            raise DataError(f"same_patient: same_session = {self.same_session}: the manifest has no column session; add it, or set any")
        partners = [len(self.partners(collection, scan)) for scan in range(len(collection))]
        ids = np.flatnonzero(partners)
        what = {"any": "", "only": " in the same session", "never": " in another session"}[self.same_session]
        left_out = Counter({f"its patient has no other scan{what}": len(collection) - len(ids)} if len(ids) < len(collection) else {})
        return Anchors(ids, left_out).require("same_patient", "choose overlapping_crops, or check the column patient of the manifest")

    def partners(self, collection: Collection, scan: int) -> np.ndarray:
        """``Int[n]``: the scans that may be drawn together with one."""
        rows = collection.sharing(scan, "patient")
        fits = rows != scan
        if self.same_session != "any":
            session = collection.texts("session")
            fits &= (session[rows] == session[scan]) == (self.same_session == "only")
        return rows[fits]

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """A crop of scan `anchor` and one of another scan of its patient."""
        other = int(rng.choice(self.partners(collection, anchor)))
        if self.position == "free":
            return ViewSpec(anchor, random_box(collection, anchor, rng)), ViewSpec(other, random_box(collection, other, rng))
        return matched_crops(collection, anchor, other, self.jitter_mm, rng)

    def relate(self, rows: Keys, cols: Keys, similarity: Tensor | None) -> Relation:
        """P = 1 for the same patient, M = 1 - P."""
        return related(rows, cols, rows.patient[:, None] == cols.patient)
