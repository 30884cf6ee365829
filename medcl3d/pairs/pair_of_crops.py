"""Two overlapping crops of one scan per sample, and the correspondence of their points."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from medcl3d.config.field_types import Fraction, NonNegative, PositiveInt
from medcl3d.core.collection import Collection
from medcl3d.core.geometry import ViewSpec
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation, related, related_within
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.boxes import distance_mm
from medcl3d.pairs.overlapping_crops import OverlappingCrops

ROUNDING_MM = 1e-6


@dataclass(frozen=True, kw_only=True)
class PairOfCrops:
    """Fields and draws of a strategy with two overlapping crops of one scan per sample.

    min_iou, max_iou  overlap of the two crops of a sample
    """

    min_iou: Fraction = 0.2
    max_iou: Fraction = 0.8

    def __post_init__(self) -> None:
        _ = self._crops  # validates the range

    @cached_property
    def _crops(self) -> OverlappingCrops:
        return OverlappingCrops(min_iou=self.min_iou, max_iou=self.max_iou)

    def anchors(self, collection: Collection) -> Anchors:
        """Scans in which two crops can be far enough apart."""
        return self._crops.anchors(collection)

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """Two overlapping crops of scan `anchor`."""
        return self._crops.sample(collection, anchor, rng)


@dataclass(frozen=True, kw_only=True)
class PointsOfCrops(PairOfCrops):
    """Fields of a strategy that also relates points in both crops of a sample.

    num_points    points per sample, in the intersection of its crops
    tolerance_mm  points of one frame attract up to this distance
    ignore_mm     points of one frame that do not attract are ignored below this distance
    """

    num_points: PositiveInt = 32
    tolerance_mm: NonNegative = 0.0
    ignore_mm: NonNegative = 5.0

    def correspondence(self, rows: Keys, cols: Keys) -> Relation:
        """Points: P = 1 within tolerance_mm, ignored up to ignore_mm. Views: P = 1 within the sample."""
        if rows.are_views:
            return related_within(rows, cols, rows.sample, cols.sample)
        return relate_points(rows, cols, self.tolerance_mm, self.ignore_mm)


def relate_points(rows: Keys, cols: Keys, tolerance_mm: float, ignore_mm: float) -> Relation:
    """P = 1 for one point of a sample, or within `tolerance_mm` in a frame; ignored below `ignore_mm`."""
    same_point = (rows.sample[:, None] == cols.sample) & (rows.point[:, None] == cols.point)
    distance = distance_mm(rows, cols)
    positive = same_point | (distance <= tolerance_mm + ROUNDING_MM)
    return related(rows, cols, positive, ~positive & (distance >= ignore_mm))
