"""Corresponding points of two crops, with stronger repulsion of the contralateral place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from medcl3d.config.field_types import Fraction, NonNegative, Positive, PositiveInt
from medcl3d.core.collection import Collection
from medcl3d.core.geometry import ViewSpec
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation, related
from medcl3d.pairs import PAIRS, StrategyTraits
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.overlapping_crops import OverlappingCrops
from medcl3d.pairs.voxel_correspondence import relate_points

MIRROR = (-1.0, 1.0, 1.0)  # of body coordinates, RAS+


@PAIRS.register("mirror_position")
@dataclass(frozen=True, kw_only=True)
class MirrorPosition:
    """As voxel_correspondence; items near each other's mirror image repel by M (1 + beta k), in any scan.

    k = exp(-m^2 / 2 sigma^2) (1 - exp(-d^2 / 2 sigma^2)), with d the distance of two items in body
    coordinates, m that of one item from the other's mirror image at the plane x = 0. k is 0 near the plane,
    where an item is its own mirror image.

    beta       additional repulsion of the contralateral place; 0 is voxel_correspondence
    sigma_mm   width of the region around the mirror image
    num_points, tolerance_mm, ignore_mm  for points of one scan, as in voxel_correspondence
    min_iou, max_iou  overlap of the two crops of a sample

    Views (an objective without points): P = 1 within the sample, M as above between views.
    Flips of left and right in the views contradict it: set `flip_probability: [0, 0.5, 0.5]`.
    Source: our own; not found elsewhere.
    """

    beta: NonNegative = 4.0
    sigma_mm: Positive = 10.0
    num_points: PositiveInt = 32
    tolerance_mm: NonNegative = 0.0
    ignore_mm: NonNegative = 5.0
    min_iou: Fraction = 0.2
    max_iou: Fraction = 0.8

    def __post_init__(self) -> None:
        _ = self._crops  # validates the range

    @cached_property
    def _crops(self) -> OverlappingCrops:
        return OverlappingCrops(min_iou=self.min_iou, max_iou=self.max_iou)

    @property
    def traits(self) -> StrategyTraits:
        """The traits: a placebo moves the plane in each scan, and with it the place that repels."""
        return StrategyTraits(
            signal_columns=("body",), signal_weights=frozenset({"negative"}), relates_points=True
        )

    def anchors(self, collection: Collection) -> Anchors:
        """Scans in which two crops can be far enough apart."""
        return self._crops.anchors(collection)

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """Two overlapping crops of scan `anchor`."""
        return self._crops.sample(collection, anchor, rng)

    def relate(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """Correspondence within a scan; repulsion by the distance from the mirror image."""
        if bool((rows.point < 0).all()):
            inner = related(rows, cols, rows.sample[:, None] == cols.sample)
        else:
            inner = relate_points(rows, cols, self.tolerance_mm, self.ignore_mm)
        mirrored = cols.body * cols.body.new_tensor(MIRROR)
        opposite = self._near(rows.body, mirrored) * (1 - self._near(rows.body, cols.body))
        negative = inner.negative.double() * (1 + self.beta * opposite)
        return related(rows, cols, inner.positive, negative)

    def _near(self, first: Float64[Tensor, "N 3"], second: Float64[Tensor, "M 3"]) -> Float64[Tensor, "N M"]:
        """``[N, M]``: exp(-d^2 / 2 sigma^2) of positions in body mm."""
        apart = torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
        return torch.exp(-(apart**2) / (2 * self.sigma_mm**2))
