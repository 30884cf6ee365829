"""Crops of one scan with a chosen overlap."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from medcl3d.config.field_types import Fraction, PositiveInt
from medcl3d.core.collection import Collection
from medcl3d.core.equal_pairs import equal_pairs
from medcl3d.core.errors import ConfigError
from medcl3d.core.geometry import Box, ViewSpec, triple
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation, related, related_at
from medcl3d.pairs import PAIRS, StrategyTraits
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.boxes import iou, iou_at, iou_mm, overlap_offset, start_range

TRIES = 200
ROUNDING = 1e-9


@PAIRS.register("overlapping_crops")
@dataclass(frozen=True, kw_only=True)
class OverlappingCrops:
    """Positives are crops of one scan whose IoU, in mm, is at least `min_iou`.

    min_iou, max_iou  range of all pairwise IoU of a sample's crops; uniform in it for two crops
    num_views         crops per sample, at uniform positions inside the body
    same_scan         other pairs of one scan are ignored (`ignore`) or repel (`negative`)
    samples_per_scan  samples of each scan per step, which then holds samples_per_step / samples_per_scan
                      scans. With 1, and no more samples per step than scans, two samples of one scan never
                      share a step and `same_scan` has no effect

    Source: overlapping crops as positives, as in PGL (Xie et al., 2020) and LatentCampus.
    """

    min_iou: Fraction = 0.3
    max_iou: Fraction = 0.8
    num_views: Annotated[int, Field(ge=2)] = 2
    same_scan: Literal["ignore", "negative"] = "ignore"
    samples_per_scan: PositiveInt = 1

    def __post_init__(self) -> None:
        if self.min_iou > self.max_iou:
            raise ConfigError(
                "min_iou",
                self.min_iou,
                f"exceeds max_iou = {self.max_iou}",
                "swap them or widen the range",
                colon=False,
            )

    @property
    def traits(self) -> StrategyTraits:
        """The traits, with the batch grouping of `samples_per_scan`."""
        return StrategyTraits(
            constant_across=("scan",),
            within_scan=("same_scan",),
            samples_per_scan=self.samples_per_scan,
        )

    def anchors(self, collection: Collection) -> Anchors:
        """Scans in which crops can be far enough apart."""
        size = collection.patch_size
        ids, left_out = [], Counter[str]()
        for scan in range(len(collection)):
            low, high = start_range(collection, scan)
            farthest = triple(np.minimum(high - low, np.array(size)))
            if iou(Box((0, 0, 0), size), Box(farthest, size)) <= self.max_iou + ROUNDING:
                ids.append(scan)
            else:
                reason = f"no two crops of {size} voxels are far enough apart for max_iou {self.max_iou}"
                left_out[reason] += 1
        return Anchors(np.array(ids, dtype=np.int64), left_out).require(
            "overlapping_crops", "use a smaller data.patch_size or a larger max_iou"
        )

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """`num_views` crops of scan `anchor`. ConfigError if no voxel positions have such an overlap."""
        low, high = start_range(collection, anchor)
        for _ in range(TRIES):
            boxes = self._first_two(collection, low, high, rng)
            for _ in range(TRIES if self.num_views > 2 else 0):
                candidate = Box(triple(rng.integers(low, high + 1)), collection.patch_size)
                if len(boxes) < self.num_views and all(self._fits(iou(candidate, box)) for box in boxes):
                    boxes.append(candidate)
            if len(boxes) == self.num_views:
                return tuple(ViewSpec(anchor, boxes[i]) for i in rng.permutation(self.num_views))
        name = collection.table["scan"].iloc[anchor]
        raise ConfigError(
            problem=f"scan {name} has no {self.num_views} crops of {collection.patch_size} voxels with every "
            f"IoU in [{self.min_iou}, {self.max_iou}]",
            remedy="widen the range, lower num_views or change data.patch_size",
            place="overlapping_crops",
        )

    def _fits(self, overlap: float) -> bool:
        return self.min_iou - ROUNDING <= overlap <= self.max_iou + ROUNDING

    def _first_two(
        self,
        collection: Collection,
        low: Int[np.ndarray, 3],
        high: Int[np.ndarray, 3],
        rng: np.random.Generator,
    ) -> list[Box]:
        """Two boxes with an IoU as close to a uniform draw as voxels allow; [] if it is outside the range."""
        size = np.array(collection.patch_size)
        target = rng.uniform(self.min_iou, self.max_iou)
        exact = overlap_offset(size, high - low, target, rng)
        rounded = [sorted({math.floor(x), math.ceil(x)}) for x in exact.tolist()]
        offsets = np.array(list(product(*rounded)), dtype=np.int64)
        offsets = offsets[(np.abs(offsets) <= high - low).all(1)]
        if len(offsets) == 0:
            return []
        shared = np.maximum(size - np.abs(offsets), 0).prod(1)
        overlaps = shared / (2 * size.prod() - shared)
        nearest = int(np.abs(overlaps - target).argmin())
        if not self._fits(float(overlaps[nearest])):
            return []
        offset = offsets[nearest]
        start = rng.integers(low + np.maximum(0, -offset), high - np.maximum(0, offset) + 1)
        return [Box(triple(start), triple(size)), Box(triple(start + offset), triple(size))]

    def relate(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """P = 1 if IoU >= min_iou; other pairs of the scan are ignored or repel; other scans repel."""
        least = self.min_iou - ROUNDING
        of_scan = equal_pairs(rows.scan, cols.scan)
        if of_scan is not None:
            overlaps = iou_at(rows, cols, of_scan) >= least
            ignored = ~overlaps if self.same_scan == "ignore" else None
            return related_at(rows, cols, of_scan, overlaps, ignored)
        same_scan = rows.scan[:, None] == cols.scan
        positive = same_scan & (iou_mm(rows, cols) >= least)
        negative = ~positive if self.same_scan == "negative" else ~same_scan
        return related(rows, cols, positive, negative)
