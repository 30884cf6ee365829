"""Corresponding points in two crops."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float
from torch import Tensor

from medcl3d.config.field_types import Fraction, NonNegative, PositiveInt
from medcl3d.core.collection import Collection
from medcl3d.core.geometry import ViewSpec
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation, related
from medcl3d.pairs import PAIRS, StrategyTraits
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.boxes import distance_mm
from medcl3d.pairs.overlapping_crops import OverlappingCrops

ROUNDING_MM = 1e-6


@PAIRS.register("voxel_correspondence")
@dataclass(frozen=True, kw_only=True)
class VoxelCorrespondence:
    """Positives are points of two overlapping crops at the same physical position, within `tolerance_mm`.

    Points of one scan nearer than `ignore_mm` are ignored: neighbouring points look similar and are not
    negatives. Between whole views (an objective without points), P = 1 within the sample.

    samples_per_scan  samples of each scan per step, which then holds samples_per_step / samples_per_scan
                      scans; points of one scan are related across samples too

    Source: vox2vec (Goncharov et al., MICCAI 2023), SAM (Yan et al., TMI 2022), DenseCL (Wang et al., CVPR
    2021).
    """

    min_iou: Fraction = 0.2
    max_iou: Fraction = 0.8
    num_points: PositiveInt = 32
    tolerance_mm: NonNegative = 0.0
    ignore_mm: NonNegative = 5.0
    samples_per_scan: PositiveInt = 1

    def __post_init__(self) -> None:
        _ = self._crops  # validates the range

    @cached_property
    def _crops(self) -> OverlappingCrops:
        return OverlappingCrops(min_iou=self.min_iou, max_iou=self.max_iou)

    @property
    def traits(self) -> StrategyTraits:
        """The traits, with the batch grouping of `samples_per_scan`."""
        return StrategyTraits(
            signal_columns=("position_mm",),
            constant_across=("sample", "frame"),
            relates_points=True,
            samples_per_scan=self.samples_per_scan,
        )

    def anchors(self, collection: Collection) -> Anchors:
        """Scans in which two crops can be far enough apart."""
        return self._crops.anchors(collection)

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """Two overlapping crops of scan `anchor`."""
        return self._crops.sample(collection, anchor, rng)

    def relate(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """Points: P = 1 within tolerance_mm, ignored up to ignore_mm. Views: P = 1 within the sample."""
        same_sample = rows.sample[:, None] == cols.sample
        if bool((rows.point < 0).all()):
            return related(rows, cols, same_sample)
        return relate_points(rows, cols, self.tolerance_mm, self.ignore_mm)


def relate_points(rows: Keys, cols: Keys, tolerance_mm: float, ignore_mm: float) -> Relation:
    """P = 1 for one point of a sample, or within `tolerance_mm` in a frame; ignored below `ignore_mm`."""
    same_point = (rows.sample[:, None] == cols.sample) & (rows.point[:, None] == cols.point)
    distance = distance_mm(rows, cols)
    positive = same_point | (distance <= tolerance_mm + ROUNDING_MM)
    return related(rows, cols, positive, ~positive & (distance >= ignore_mm))
