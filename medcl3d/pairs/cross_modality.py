"""Corresponding crops of two modalities of one session."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from medcl3d.config.field_types import NonNegative
from medcl3d.core.collection import Collection
from medcl3d.core.errors import DataError
from medcl3d.core.geometry import ViewSpec
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation, related
from medcl3d.pairs import PAIRS, StrategyTraits
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.matching import corresponding_crops
from medcl3d.pairs.sessions import compare_sessions


@PAIRS.register("cross_modality")
@dataclass(frozen=True, kw_only=True)
class CrossModality:
    """Positives are crops of two modalities of one session, at the same position.

    modalities     the modalities to pair (default: all)
    across_frames  scans of a session without a common frame: `refuse` does not pair them, `body` matches them
                   in body coordinates, as accurately as their body masks agree
    jitter_mm      largest offset of the second crop from the corresponding position, along each axis

    P = 1 within the sample, M = 1 - P: crops of one modality do not attract each other.
    Source: multimodal contrastive learning with images as the other view, as in CFM and UAE (SAM's
    successors).
    """

    modalities: tuple[str, ...] | None = None
    across_frames: Literal["refuse", "body"] = "refuse"
    jitter_mm: NonNegative = 0.0

    traits: ClassVar[StrategyTraits] = StrategyTraits(
        signal_columns=("modality",),
        weak_placebo="two scans of a session mostly differ in modality after any permutation; compare with "
        "a jitter_mm as large as the crop, which breaks the place",
        constant_across=("sample",),
    )

    def anchors(self, collection: Collection) -> Anchors:
        """Scans with another modality in their session. DataError for a modality that no scan has."""
        present = sorted(collection.table["modality"].dropna().unique())
        missing = [name for name in self.modalities or () if name not in present]
        if missing:
            raise DataError(
                f"cross_modality: modalities: no scan has the modality {', '.join(missing)}; "
                f"choose from {', '.join(present)}"
            )
        ids = np.flatnonzero([len(self.partners(collection, scan)) > 0 for scan in range(len(collection))])
        named = self._named(collection, np.arange(len(collection)))
        has_other = np.array([len(self._of_session(collection, scan)) > 0 for scan in range(len(collection))])
        other_frame = int((named & has_other).sum()) - len(ids)
        left_out = Counter(
            {
                f"its modality is not one of {', '.join(self.modalities or ())}": int((~named).sum()),
                "its session has no other modality": int((named & ~has_other).sum()),
                "its session's other modalities have another frame": other_frame,
            }
        )
        if (named & has_other).any():
            remedy = "set across_frames: body, add the column frame to scans that share world mm"
        else:
            remedy = "check the columns session and modality of the manifest"
        remedy += ", or choose same_patient"
        return Anchors(ids, +left_out).require("cross_modality", remedy)

    def _named(self, collection: Collection, scans: Int[np.ndarray, " m"]) -> Bool[np.ndarray, " m"]:
        names = collection.texts("modality")[scans]
        return np.array([self.modalities is None or name in self.modalities for name in names], dtype=bool)

    def _of_session(self, collection: Collection, scan: int) -> Int[np.ndarray, " m"]:
        """``Int[n]``: scans of other modalities in a scan's session."""
        rows = collection.sharing(scan, "patient")
        modality, named = collection.columns["modality"], self._named(collection, rows)
        known = (modality[rows] >= 0) & (modality[scan] >= 0)
        fits = compare_sessions(collection, scan, rows)[0] & known & (modality[rows] != modality[scan])
        found: np.ndarray = rows[fits & named & named[rows == scan]]
        return found

    def partners(self, collection: Collection, scan: int) -> Int[np.ndarray, " m"]:
        """``Int[n]``: the scans that a scan may be paired with."""
        found = self._of_session(collection, scan)
        if self.across_frames == "body":
            return found
        return found[[collection.share_frame(scan, int(other)) for other in found]] if len(found) else found

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """A crop of scan `anchor` and the corresponding crop of another modality."""
        other = int(rng.choice(self.partners(collection, anchor)))
        return corresponding_crops(collection, anchor, other, self.jitter_mm, rng)

    def relate(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """P = 1 within the sample, M = 1 - P."""
        return related(rows, cols, rows.sample[:, None] == cols.sample)
