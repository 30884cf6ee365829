"""Crops resampled to the grid of their view, with its affine and spacing."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional as F

from medcl3d.core.collection import Collection
from medcl3d.core.geometry import ViewSpec


def to_grid(crop: Float[Tensor, "C _ _ _"], view: ViewSpec) -> Float[Tensor, "C _ _ _"]:
    """Resample a box's voxels ``[C, D, H, W]`` to its view's grid: linear, with averages on shrunk axes."""
    if view.out_shape == view.box.size:
        return crop
    # Linear samples, enough in each voxel of the view to read all of the box: exact for ramps.
    times = [-(-size // length) for size, length in zip(view.box.size, view.out_shape, strict=True)]
    fine = [length * n for length, n in zip(view.out_shape, times, strict=True)]
    samples = F.interpolate(crop[None], size=fine, mode="trilinear", align_corners=False)
    return samples[0] if max(times) == 1 else F.avg_pool3d(samples, times)[0]


def view_affine(collection: Collection, view: ViewSpec) -> Float64[Tensor, "4 4"]:
    """``Float64[4, 4]`` from the voxel indices of a view's grid (before augmentation) to world mm."""
    ratio = np.array(view.box.size) / np.array(view.out_shape)
    grid = np.eye(4)
    grid[:3, :3] = np.diag(ratio)
    grid[:3, 3] = np.array(view.box.start) + (ratio - 1) / 2  # both grids span the same box
    return torch.from_numpy(collection.affines[view.scan] @ grid)


def view_spacing(collection: Collection, view: ViewSpec) -> Float64[Tensor, 3]:
    """``Float64[3]`` mm per voxel of the view's grid."""
    return torch.from_numpy(
        collection.spacings[view.scan] * np.array(view.box.size) / np.array(view.out_shape)
    )
