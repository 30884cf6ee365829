"""Augment the crops of a batch and record the affine of each view."""

from __future__ import annotations

from typing import Any

import torch

from medcl3d.core.batch import PairBatch, ViewGroup
from medcl3d.core.device import to_device
from medcl3d.sampling.raw_batch import RawBatch


def make_views(raw: RawBatch, recipe: Any) -> PairBatch:
    """Augment a batch on its own device and record the affine of each view, augmentation included.

    Computed in float32 even under autocast, so that intensities and positions keep their digits.
    """
    groups = []
    for group in raw.groups:
        device = group.crops.device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            result = recipe.apply(group.crops, group.parameters, group.spacing_mm)
        affine = to_device(group.affine @ result.voxel_map.to(group.affine.device), device)
        groups.append(ViewGroup(group.role, result.voxels, affine, group.keys))
    return PairBatch(tuple(groups), raw.points)
