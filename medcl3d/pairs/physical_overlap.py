"""Crops of one scan attract by as much as they overlap."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from medcl3d.data.collection import Collection
from medcl3d.errors import ConfigError
from medcl3d.pairs import PAIRS
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.boxes import iou_mm
from medcl3d.pairs.overlapping_crops import OverlappingCrops
from medcl3d.registry import Count, Fraction, NonNegative, Positive
from medcl3d.types import Keys, Relation, ViewSpec, related

ROUNDING = 1e-9
"""An IoU up to this is what rounding leaves of boxes that only touch."""


@PAIRS.register("physical_overlap")
@dataclass(frozen=True, kw_only=True)
class PhysicalOverlap:
    """Soft overlap: in one scan P = IoU^gamma and M = 1 - min(1, IoU / kappa); other scans repel.

    gamma             how fast attraction falls with the overlap: 0.5 slower, 2 faster than the IoU; 0: every overlap attracts fully
    kappa             from this IoU on, crops of one scan no longer repel
    min_iou, max_iou  overlap of the two crops of a sample, drawn uniformly
    samples_per_scan  so many samples of each scan share a step, which holds samples_per_step / samples_per_scan scans. With 1,
                      and no more samples in a step than scans, soft overlap relates the two crops of a sample only

    IoU is in mm. In one scan that is the IoU in voxels too, whatever the spacing, since a scan's grid is one linear map of
    its mm: there is no ablation in voxels to make.
    Source: our own; the hard form is overlapping_crops. Nearest to it is VoCo (Wu et al., CVPR 2024), where the similarity
    of a crop to fixed base crops of its scan predicts how much they overlap.
    """

    gamma: NonNegative = 1.0
    kappa: Positive = 0.5
    min_iou: Fraction = 0.1
    max_iou: Fraction = 0.9
    samples_per_scan: Count = 1

    informative = ()
    constant_across = ("scan",)

    def __post_init__(self) -> None:
        if self.kappa > 1:
            raise ConfigError(f"physical_overlap: kappa = {self.kappa} exceeds 1, the largest IoU; lower it")
        if self.min_iou == 0:
            raise ConfigError("physical_overlap: min_iou = 0: crops that do not overlap do not attract; raise it, to 0.1 for example")
        _ = self._crops  # validates the range

    @cached_property
    def _crops(self) -> OverlappingCrops:
        return OverlappingCrops(min_iou=self.min_iou, max_iou=self.max_iou)

    def anchors(self, collection: Collection) -> Anchors:
        """Scans in which two crops can lie far enough apart."""
        return self._crops.anchors(collection)

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """Two overlapping crops of scan `anchor`."""
        return self._crops.sample(collection, anchor, rng)

    def relate(self, rows: Keys, cols: Keys, similarity: Tensor | None) -> Relation:
        """P and M by the overlap in one scan; P = 0 and M = 1 elsewhere."""
        overlap = torch.where(rows.scan[:, None] == cols.scan, iou_mm(rows, cols), 0.0)
        positive = torch.where(overlap > ROUNDING, overlap**self.gamma, 0.0)
        return related(rows, cols, positive, 1 - (overlap / self.kappa).clamp(max=1))
