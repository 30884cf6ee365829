"""Corresponding points of two crops, with stronger repulsion of the contralateral place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from medcl3d.config.field_types import NonNegative, Positive
from medcl3d.core.device import to_device
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation, related
from medcl3d.pairs import PAIRS, StrategyTraits
from medcl3d.pairs.pair_of_crops import PointsOfCrops

MIRROR = (-1.0, 1.0, 1.0)  # of body coordinates, RAS+


@PAIRS.register("mirror_position")
@dataclass(frozen=True, kw_only=True)
class MirrorPosition(PointsOfCrops):
    """As voxel_correspondence; items near each other's mirror image repel by M (1 + beta k), in any scan.

    k = exp(-m^2 / 2 sigma^2) (1 - exp(-d^2 / 2 sigma^2)), with d the distance of two items in body
    coordinates, m that of one item from the other's mirror image at the plane x = 0. k is 0 near the plane,
    where an item is its own mirror image.

    beta       additional repulsion of the contralateral place; 0 is voxel_correspondence
    sigma_mm   width of the region around the mirror image
    num_points, tolerance_mm, ignore_mm  for points of one scan, as in voxel_correspondence
    min_iou, max_iou  overlap of the two crops of a sample

    Views (an objective without points): P = 1 within the sample, M as above between views.
    Views that flip left and right are refused, unless beta is 0: set `flip_probability: [0, 0.5, 0.5]`.
    Source: our own; not found elsewhere.
    """

    beta: NonNegative = 4.0
    sigma_mm: Positive = 10.0

    @property
    def traits(self) -> StrategyTraits:
        """The traits: in a placebo the place that repels is unrelated to the mirror image."""
        return StrategyTraits(
            signal_columns=("body",),
            signal_weights=frozenset({"negative"}),
            distinguishes_sides=self.beta > 0,
            relates_points=True,
        )

    def relate(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """Correspondence within a scan; repulsion by the distance from the mirror image."""
        inner = self.correspondence(rows, cols)
        mirrored = cols.body * to_device(torch.tensor(MIRROR, dtype=cols.body.dtype), cols.body.device)
        opposite = self._near(rows.body, mirrored) * (1 - self._near(rows.body, cols.body))
        negative = inner.negative.double() * (1 + self.beta * opposite)
        return related(rows, cols, inner.positive, negative)

    def _near(self, first: Float64[Tensor, "N 3"], second: Float64[Tensor, "M 3"]) -> Float64[Tensor, "N M"]:
        """``[N, M]``: exp(-d^2 / 2 sigma^2) of positions in body mm."""
        apart = torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
        return torch.exp(-(apart**2) / (2 * self.sigma_mm**2))
