"""Soft overlap: attraction between crops of one scan, weighted by their IoU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from medcl3d.config.field_types import Fraction, NonNegative, Positive, PositiveInt
from medcl3d.core.errors import ConfigError
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation, related
from medcl3d.pairs import PAIRS, StrategyTraits
from medcl3d.pairs.boxes import iou_mm
from medcl3d.pairs.pair_of_crops import PairOfCrops

ROUNDING = 1e-9
"""Largest IoU that rounding gives two boxes that only touch."""


@PAIRS.register("physical_overlap")
@dataclass(frozen=True, kw_only=True)
class PhysicalOverlap(PairOfCrops):
    """Soft overlap: in one scan P = IoU^gamma and M = 1 - min(1, IoU / kappa); other scans repel.

    gamma             exponent of the IoU: 0.5 falls more slowly, 2 faster; 0: P = 1 at any overlap
    kappa             IoU from which crops of one scan no longer repel
    min_iou, max_iou  overlap of the two crops of a sample, drawn uniformly
    samples_per_scan  samples of each scan per step, which then holds samples_per_step / samples_per_scan
                      scans. With 1, and no more samples per step than scans, soft overlap relates only the
                      two crops of a sample

    IoU is in mm. Within one scan it equals the IoU in voxels at any spacing, since a scan's grid is a linear
    map of its mm; an ablation in voxels would therefore be identical.
    Source: our own; the hard form is overlapping_crops. The closest published method is VoCo (Wu et al., CVPR
    2024), in which the similarity of a crop to fixed base crops of its scan predicts their overlap.
    """

    gamma: NonNegative = 1.0
    kappa: Positive = 0.5
    min_iou: Fraction = 0.1
    max_iou: Fraction = 0.9
    samples_per_scan: PositiveInt = 1

    def __post_init__(self) -> None:
        if self.kappa > 1:
            raise ConfigError("kappa", self.kappa, "exceeds 1, the largest IoU", "lower it", colon=False)
        if self.min_iou == 0:
            raise ConfigError(
                "min_iou",
                0,
                "crops that do not overlap do not attract",
                "raise it, for example to 0.1",
            )
        super().__post_init__()

    @property
    def traits(self) -> StrategyTraits:
        """The traits, with the batch grouping of `samples_per_scan`."""
        return StrategyTraits(constant_across=("scan",), samples_per_scan=self.samples_per_scan)

    def relate(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """P and M from the overlap in one scan; P = 0 and M = 1 elsewhere."""
        overlap = torch.where(rows.scan[:, None] == cols.scan, iou_mm(rows, cols), 0.0)
        positive = torch.where(overlap > ROUNDING, overlap**self.gamma, 0.0)
        return related(rows, cols, positive, 1 - (overlap / self.kappa).clamp(max=1))
