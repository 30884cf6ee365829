"""Global crops that attract each other and the local crops inside them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from medcl3d.config.field_types import Fraction, PositiveInt, Size
from medcl3d.core.collection import Collection
from medcl3d.core.errors import ConfigError
from medcl3d.core.geometry import Box, ViewSpec, triple
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation, related
from medcl3d.pairs import PAIRS, StrategyTraits
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.overlapping_crops import OverlappingCrops

NUM_GLOBAL = 2


@PAIRS.register("multi_crop")
@dataclass(frozen=True, kw_only=True)
class MultiCrop:
    """Two overlapping global crops, and `num_local` local crops inside them; local-local pairs are ignored.

    local_size        voxels of a local crop, on a grid of its own
    num_local         local crops per sample
    min_coverage      fraction of a local crop's volume that is inside one of the global crops
    min_iou, max_iou  overlap of the two global crops

    P = 1 within a sample if at least one of the two views is global. Targets without a gradient (momentum
    encoder in byol, moco and dino, codes in swav, stop-gradient in simsiam) come from global views only;
    other objectives relate all views.
    Source: SwAV (Caron et al., NeurIPS 2020, section 3.2), DINO (Caron et al., ICCV 2021).
    """

    local_size: Size = (16, 16, 16)
    num_local: PositiveInt = 4
    min_coverage: Fraction = 1.0
    min_iou: Fraction = 0.3
    max_iou: Fraction = 1.0

    traits: ClassVar[StrategyTraits] = StrategyTraits(constant_across=("sample",))

    def __post_init__(self) -> None:
        _ = self._globals  # validates the range

    @cached_property
    def _globals(self) -> OverlappingCrops:
        return OverlappingCrops(min_iou=self.min_iou, max_iou=self.max_iou)

    def anchors(self, collection: Collection) -> Anchors:
        """Scans that can hold two global crops. ConfigError if local crops are larger than global ones."""
        if (np.array(self.local_size) > np.array(collection.patch_size)).any():
            raise ConfigError(
                "local_size",
                self.local_size,
                f"exceeds data.patch_size = {collection.patch_size}, the size of the global crops",
                "lower it",
                owner="multi_crop",
                colon=False,
            )
        return self._globals.anchors(collection)

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """Two global views, then the local ones."""
        views = list(self._globals.sample(collection, anchor, rng))
        for _ in range(self.num_local):
            around = views[int(rng.integers(NUM_GLOBAL))].box
            views.append(ViewSpec(anchor, self._inside(around, collection.shapes[anchor], rng), role="local"))
        return tuple(views)

    def _inside(self, around: Box, shape: Int[np.ndarray, 3], rng: np.random.Generator) -> Box:
        """A local crop at a uniform position among those with at least `min_coverage` inside `around`."""
        size, outer = np.array(self.local_size), np.array(around.size)
        slack = np.floor(size * (1 - self.min_coverage)).astype(np.int64)
        inside = np.array(around.start), np.array(around.stop) - size
        # Crops do not extend past the scan's border; a scan smaller than the patch is padded on both sides.
        low = np.clip(inside[0] - slack, np.minimum(0, inside[0]), inside[0])
        high = np.clip(inside[1] + slack, inside[1], np.maximum(shape - size, inside[1]))
        while True:  # terminates: the boxes inside `around` are among the candidates
            start = rng.integers(low, high + 1)
            shared = np.minimum(start + size, inside[0] + outer) - np.maximum(start, inside[0])
            if np.prod(np.maximum(shared, 0)) >= self.min_coverage * np.prod(size) - 1e-9:
                return Box(triple(start), self.local_size)

    def relate(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """P = 1 within the sample; pairs of its local views are ignored; other samples repel."""
        same_sample = rows.sample[:, None] == cols.sample
        both_local = (rows.view[:, None] >= NUM_GLOBAL) & (cols.view >= NUM_GLOBAL)
        return related(rows, cols, same_sample & ~both_local, ~same_sample)
