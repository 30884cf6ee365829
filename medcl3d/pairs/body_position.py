"""Attraction, or reduced repulsion, between similar body positions of different patients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from medcl3d.config.field_types import Fraction, NonNegative, Positive
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation, related
from medcl3d.pairs import PAIRS, StrategyTraits
from medcl3d.pairs.pair_of_crops import PointsOfCrops


@PAIRS.register("body_position")
@dataclass(frozen=True, kw_only=True)
class BodyPosition(PointsOfCrops):
    """Across patients P = alpha exp(-d^2 / 2 sigma^2), M = 1 - exp(-d^2 / 2 h^2), d mm apart in the body.

    alpha         attraction at the same position in another patient; 0 only removes false negatives
    sigma_mm      width of the attraction
    h_mm          width of the region in which repulsion is reduced
    noise_mm      stress test: noise on each scan's body coordinates (standard deviation along each axis)
    num_points, tolerance_mm, ignore_mm  for points within a patient, as in voxel_correspondence
    min_iou, max_iou  overlap of the two crops of a sample

    Points: within a scan, views of one physical point attract; across patients, the above. Views (an
    objective without points): P = 1 within the sample; within a scan, M as across patients and P = 0.
    Body coordinates are mm from the body mask, from an atlas, or from the middle of scans that are crops
    around one organ.
    Source: our own; positives by position as in PCL (Zeng et al., MICCAI 2021), in three dimensions and soft.
    """

    alpha: Fraction = 0.5
    sigma_mm: Positive = 5.0
    h_mm: Positive = 10.0
    noise_mm: NonNegative = 0.0

    @property
    def traits(self) -> StrategyTraits:
        """The traits: the negatives alone carry the signal if alpha is 0."""
        return StrategyTraits(
            signal_columns=("body",),
            signal_weights=frozenset({"negative"} if self.alpha == 0 else {"positive", "negative"}),
            relates_points=True,
        )

    def relate(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """Weights from distances in body coordinates across scans, from correspondence within a scan."""
        first, second = rows.body + self._noise(rows), cols.body + self._noise(cols)
        squared = torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist") ** 2
        near = self.alpha * torch.exp(-squared / (2 * self.sigma_mm**2))
        far = 1 - torch.exp(-squared / (2 * self.h_mm**2))
        other_patient = rows.patient[:, None] != cols.patient
        if rows.are_views:
            same_sample = rows.sample[:, None] == cols.sample
            positive = torch.where(other_patient, near, same_sample.double())
            return related(rows, cols, positive, torch.where(same_sample, 0.0, far))
        same_scan = rows.scan[:, None] == cols.scan
        known = self.correspondence(rows, cols)
        positive = torch.where(other_patient, near, known.positive.double())
        # Another scan of the same patient may have another frame; then only body coordinates are comparable.
        exact = known.negative.double()
        negative = torch.where(same_scan, exact, torch.minimum(far, exact))
        return related(rows, cols, positive, torch.where(other_patient, far, negative))

    def _noise(self, keys: Keys) -> Float64[Tensor, "N 3"]:
        """``Float64[N, 3]`` mm, equal for all items of one scan."""
        if self.noise_mm == 0:
            return torch.zeros_like(keys.body)
        scans, rows = torch.unique(keys.scan, return_inverse=True)
        rngs = (np.random.default_rng([int(scan), 1]) for scan in scans)
        drawn = np.array([rng.normal(0.0, self.noise_mm, 3) for rng in rngs])
        return torch.from_numpy(drawn).to(keys.body.device)[rows]
