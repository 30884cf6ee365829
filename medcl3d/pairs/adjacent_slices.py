"""Slabs of one scan that lie next to each other along an axis."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch import Tensor

from medcl3d.data.manifest import Collection
from medcl3d.errors import ConfigError
from medcl3d.pairs import PAIRS
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.boxes import gap_mm, start_range
from medcl3d.registry import NonNegative, Positive
from medcl3d.types import Box, Keys, Relation, Triple, ViewSpec, related, triple


@PAIRS.register("adjacent_slices")
@dataclass(frozen=True, kw_only=True)
class AdjacentSlices:
    """Positives are slabs of one scan whose centres along `axis` are at most `max_gap_mm` apart.

    axis          0, 1, 2: towards the patient's right, front, head
    thickness_mm  of a slab, resampled to the patch's voxels along the axis (default: as thick as the patch)
    max_gap_mm    largest distance of the centres; the two slabs of a sample never coincide
    ignore_mm     slabs of one scan farther apart than max_gap_mm and up to this are left alone

    Both slabs of a sample lie at the same place across the axis.
    Source: Chaitanya et al., NeurIPS 2020; adjacent slices as positives in 2-D contrastive learning.
    """

    axis: Literal[0, 1, 2] = 2
    thickness_mm: Positive | None = None
    max_gap_mm: Positive = 5.0
    ignore_mm: NonNegative = 20.0

    informative = ()

    def __post_init__(self) -> None:
        if self.ignore_mm < self.max_gap_mm:
            raise ConfigError(f"adjacent_slices: ignore_mm = {self.ignore_mm} is below max_gap_mm = {self.max_gap_mm}; raise it to that")

    def slab(self, collection: Collection, scan: int) -> Triple:
        """Voxels of a slab in a scan."""
        size = list(collection.patch_size)
        if self.thickness_mm is not None:
            size[self.axis] = max(1, round(self.thickness_mm / collection.spacings[scan, self.axis]))
        return triple(size)

    def _starts(self, collection: Collection, scan: int) -> tuple[np.ndarray, np.ndarray]:
        return start_range(replace(collection, patch_size=self.slab(collection, scan)), scan)

    def anchors(self, collection: Collection) -> Anchors:
        """Scans that hold two slabs within the gap."""
        spacing = collection.spacings[:, self.axis]
        room = np.array([np.subtract(*self._starts(collection, scan)[::-1])[self.axis] for scan in range(len(collection))])
        coarse, short = spacing > self.max_gap_mm, room < 1
        left_out = Counter(
            {
                f"its slices are farther apart than max_gap_mm {self.max_gap_mm} along axis {self.axis}": int(coarse.sum()),
                f"it has too few slices along axis {self.axis} for two slabs": int((short & ~coarse).sum()),
            }
        )
        ids = np.flatnonzero(~coarse & ~short)
        remedy = "raise max_gap_mm, lower thickness_mm or data.patch_size along the axis, or choose another axis"
        return Anchors(ids, +left_out).require("adjacent_slices", remedy)

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """Two slabs of scan `anchor`, in random order."""
        low, high = self._starts(collection, anchor)
        start = rng.integers(low, high + 1)
        most = int(self.max_gap_mm / collection.spacings[anchor, self.axis] + 1e-9)
        here = int(start[self.axis])
        there = [i for i in range(max(low[self.axis], here - most), min(high[self.axis], here + most) + 1) if i != here]
        other = start.copy()
        other[self.axis] = rng.choice(there)
        size = self.slab(collection, anchor)
        views = [ViewSpec(anchor, Box(triple(s), size), shape=collection.patch_size) for s in (start, other)]
        return tuple(views[i] for i in rng.permutation(2))

    def relate(self, rows: Keys, cols: Keys, similarity: Tensor | None) -> Relation:
        """P = 1 within the gap in one scan, left alone up to ignore_mm, the rest repelled."""
        same_scan = rows.scan[:, None] == cols.scan
        gap = gap_mm(rows, cols, self.axis)
        positive = same_scan & (gap <= self.max_gap_mm + 1e-6)
        return related(rows, cols, positive, ~(same_scan & (gap <= self.ignore_mm + 1e-6)))
