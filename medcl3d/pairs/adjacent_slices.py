"""Adjacent slabs of one scan along an axis."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from medcl3d.config.field_types import NonNegative, Positive, PositiveInt
from medcl3d.core.collection import Collection
from medcl3d.core.errors import ConfigError
from medcl3d.core.geometry import Box, ViewSpec, triple
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation, related
from medcl3d.pairs import PAIRS, StrategyTraits
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.boxes import gap_mm, slab_size, start_range


@PAIRS.register("adjacent_slices")
@dataclass(frozen=True, kw_only=True)
class AdjacentSlices:
    """Positives are slabs of one scan whose centres along `axis` are at most `max_gap_mm` apart.

    axis              0, 1, 2: towards the patient's right, front, head
    thickness_mm      thickness of a slab, resampled to the patch's voxels along the axis (default: that of
                      the patch)
    max_gap_mm        largest distance between the centres; the two slabs of a sample never coincide
    ignore_mm         slabs of one scan farther apart than max_gap_mm and up to this distance are ignored
    samples_per_scan  samples of each scan per step, which then holds samples_per_step / samples_per_scan
                      scans. With 1, and no more samples per step than scans, two samples of one scan never
                      share a step and `ignore_mm` has no effect

    Both slabs of a sample have the same in-plane position. Distances and thickness are measured along the
    axis, as spacing is; on a sheared scan the distance between two planes along their normal is smaller.
    Source: Chaitanya et al., NeurIPS 2020; adjacent slices as positives in 2-D contrastive learning.
    """

    axis: Literal[0, 1, 2] = 2
    thickness_mm: Positive | None = None
    max_gap_mm: Positive = 5.0
    ignore_mm: NonNegative = 20.0
    samples_per_scan: PositiveInt = 1

    def __post_init__(self) -> None:
        if self.ignore_mm < self.max_gap_mm:
            raise ConfigError(
                "ignore_mm",
                self.ignore_mm,
                f"is below max_gap_mm = {self.max_gap_mm}",
                "raise it to max_gap_mm or more",
                colon=False,
            )

    def _starts(self, collection: Collection, scan: int) -> tuple[Int[np.ndarray, 3], Int[np.ndarray, 3]]:
        size = slab_size(collection, scan, self.axis, self.thickness_mm)
        return start_range(replace(collection, patch_size=size), scan)

    @property
    def traits(self) -> StrategyTraits:
        """The traits, with the batch grouping of `samples_per_scan`."""
        return StrategyTraits(
            signal_columns=("slice",),
            constant_across=("scan",),
            within_scan=("ignore_mm",),
            samples_per_scan=self.samples_per_scan,
        )

    def anchors(self, collection: Collection) -> Anchors:
        """Scans that hold two slabs within the gap."""
        spacing = collection.spacings[:, self.axis]
        starts = (self._starts(collection, scan) for scan in range(len(collection)))
        num_starts = np.array([(high - low)[self.axis] + 1 for low, high in starts])
        coarse, short = spacing > self.max_gap_mm, num_starts < 2
        too_coarse = f"its slices are farther apart than max_gap_mm {self.max_gap_mm} along axis {self.axis}"
        left_out = Counter(
            {
                too_coarse: int(coarse.sum()),
                f"it has too few slices along axis {self.axis} for two slabs": int((short & ~coarse).sum()),
            }
        )
        ids = np.flatnonzero(~coarse & ~short)
        remedy = "raise max_gap_mm, lower thickness_mm or data.patch_size along the axis, "
        remedy += "or choose another axis"
        return Anchors(ids, +left_out).require("adjacent_slices", remedy)

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """Two slabs of scan `anchor`, in random order."""
        low, high = self._starts(collection, anchor)
        start = rng.integers(low, high + 1)
        max_gap = int(self.max_gap_mm / collection.spacings[anchor, self.axis] + 1e-9)
        index = int(start[self.axis])
        first, last = max(low[self.axis], index - max_gap), min(high[self.axis], index + max_gap)
        other = start.copy()
        other[self.axis] = rng.choice([i for i in range(first, last + 1) if i != index])
        size = slab_size(collection, anchor, self.axis, self.thickness_mm)
        reported = [Box(triple(s), size) for s in (start, other)]
        read = [self._shuffled(box, collection, anchor, low, high) for box in reported]
        shape = collection.patch_size
        if collection.slice_seed is None:
            views = [ViewSpec(anchor, box, shape=shape) for box in read]
        else:
            pairs = zip(read, reported, strict=True)
            views = [ViewSpec(anchor, box, shape=shape, key_box=key) for box, key in pairs]
        return tuple(views[i] for i in rng.permutation(2))

    def _shuffled(
        self, box: Box, collection: Collection, scan: int, low: Int[np.ndarray, 3], high: Int[np.ndarray, 3]
    ) -> Box:
        """The slab that a placebo reads for `box`: the slabs of a scan are permuted, once per seed."""
        if collection.slice_seed is None:
            return box
        first, last = int(low[self.axis]), int(high[self.axis])
        order = np.random.default_rng([collection.slice_seed, scan]).permutation(np.arange(first, last + 1))
        start = list(box.start)
        start[self.axis] = int(order[start[self.axis] - first])
        return Box(triple(start), box.size)

    def relate(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """P = 1 within the gap in one scan; ignored up to ignore_mm; all other pairs repel."""
        same_scan = rows.scan[:, None] == cols.scan
        gap = gap_mm(rows, cols, self.axis)
        positive = same_scan & (gap <= self.max_gap_mm + 1e-6)
        return related(rows, cols, positive, ~(same_scan & (gap <= self.ignore_mm + 1e-6)))
