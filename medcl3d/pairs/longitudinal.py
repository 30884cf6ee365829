"""Two visits of one patient in one modality: attraction decreases with the time between them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from medcl3d.config.field_types import NonNegative, Positive
from medcl3d.core.collection import Collection
from medcl3d.core.geometry import ViewSpec
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation, related
from medcl3d.pairs import PAIRS, StrategyTraits
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.matching import corresponding_crops
from medcl3d.pairs.sessions import compare_sessions


@PAIRS.register("longitudinal")
@dataclass(frozen=True, kw_only=True)
class Longitudinal:
    """Positives are corresponding crops of two visits in one modality: P = exp(-days apart / T).

    time_constant_days  T: visits this many days apart have P = 1/e
    max_gap_days        visits farther apart are not drawn together (default: no limit)
    jitter_mm           largest offset of the second crop from the corresponding position, along each axis

    Two scans of one patient and modality are two visits if their sessions or their session_days differ; an
    empty session is unknown and differs from none. A scan without session_days is never paired.
    M = 1 - P within the sample; other pairs of the patient are ignored; other patients repel.
    Source: CL-TCI. That nearer visits make better positives is an assumption: MedAug (Vu et al., MLHC 2021)
    found positives of the same study best.
    """

    time_constant_days: Positive = 365.0
    max_gap_days: Positive | None = None
    jitter_mm: NonNegative = 0.0

    traits: ClassVar[StrategyTraits] = StrategyTraits(
        signal_columns=("session_days",),
        weak_placebo="it draws nearly the same pairs, with other weights; compare with same_patient",
        constant_across=("sample", "patient"),
    )

    def anchors(self, collection: Collection) -> Anchors:
        """Scans with another visit of their patient in their modality. DataError if no scan has one."""
        has_days = "session_days" in collection.columns
        days = collection.column("session_days") if has_days else np.full(len(collection), np.nan)
        partners = np.array([len(self.partners(collection, scan)) for scan in range(len(collection))])
        no_date, unpaired = np.isnan(days), (partners == 0) & ~np.isnan(days)
        near = "" if self.max_gap_days is None else f" within {self.max_gap_days:g} days"
        left_out = Counter(
            {
                "it has no session_days": int(no_date.sum()),
                f"its patient has no other visit in its modality{near}": int(unpaired.sum()),
            }
        )
        if no_date.all():
            action = "fill in" if has_days else "add"
            remedy = f"{action} the column session_days (days since the patient's first visit)"
        else:
            remedy = "give the visits of a patient different values of session_days or session"
            remedy += ", raise max_gap_days" if near else ""
        remedy += ", or choose same_patient"
        return Anchors(np.flatnonzero(partners), +left_out).require("longitudinal", remedy)

    def partners(self, collection: Collection, scan: int) -> Int[np.ndarray, " m"]:
        """``Int[n]``: scans of other visits that a scan may be paired with."""
        if "session_days" not in collection.columns:
            return np.array([], dtype=np.int64)
        rows = collection.sharing(scan, "patient", "modality")
        # A placebo permutes the days of visits, but not which scans are different visits.
        days = collection.columns["session_days"]
        true_days = collection.texts("session_days")[rows].astype(np.float64)
        other_day = np.abs(true_days - true_days[rows == scan]) > 0
        other_visit = compare_sessions(collection, scan, rows)[1] | other_day
        near = np.abs(days[rows] - days[scan]) <= (np.inf if self.max_gap_days is None else self.max_gap_days)
        found: np.ndarray = rows[(rows != scan) & other_visit & near]
        return found

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """A crop of scan `anchor` and the corresponding crop of another visit."""
        other = int(rng.choice(self.partners(collection, anchor)))
        return corresponding_crops(collection, anchor, other, self.jitter_mm, rng)

    def relate(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """P = exp(-days / T) within the sample; other pairs of the patient are ignored; the rest repels."""
        days = (rows.session_days[:, None] - cols.session_days).abs()
        same_patient = rows.patient[:, None] == cols.patient
        drawn = same_patient & (rows.sample[:, None] == cols.sample) & ~days.isnan()
        positive = torch.where(drawn, torch.exp(-days / self.time_constant_days), 0.0)
        return related(rows, cols, positive, torch.where(same_patient & ~drawn, 0.0, 1 - positive))
