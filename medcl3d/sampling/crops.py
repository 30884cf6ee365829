"""Crops resampled to the grid of their view, with its affine and spacing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.nn import functional as F

from medcl3d.core.collection import Collection
from medcl3d.core.geometry import ViewSpec


def to_grid(crop: Float[Tensor, "C _ _ _"], view: ViewSpec) -> Float[Tensor, "C _ _ _"]:
    """Resample a box's voxels ``[C, D, H, W]`` to its view's grid: linear, with averages on shrunk axes."""
    if view.out_shape == view.box.size:
        return crop
    # Linear samples, enough in each voxel of the view to read all of the box: exact for ramps,
    # except in outermost voxels, where the box ends.
    times = [-(-size // length) for size, length in zip(view.box.size, view.out_shape, strict=True)]
    fine = [length * n for length, n in zip(view.out_shape, times, strict=True)]
    samples = F.interpolate(crop[None], size=fine, mode="trilinear", align_corners=False)
    return samples[0] if max(times) == 1 else F.avg_pool3d(samples, times)[0]


def view_affine(collection: Collection, view: ViewSpec) -> Float64[Tensor, "4 4"]:
    """``Float64[4, 4]`` from the voxel indices of a view's grid (before augmentation) to world mm."""
    affine: Tensor = view_affines(collection, [view])[0]
    return affine


def view_affines(collection: Collection, views: Sequence[ViewSpec]) -> Float64[Tensor, "N 4 4"]:
    """``Float64[N, 4, 4]``: the affine of each view."""
    start = np.array([view.box.start for view in views])
    ratio = _sizes(views) / _shapes(views)
    grids = np.zeros((len(views), 4, 4))
    grids[:, range(3), range(3)], grids[:, 3, 3] = ratio, 1
    grids[:, :3, 3] = start + (ratio - 1) / 2  # both grids span the same box
    return torch.from_numpy(collection.affines[[view.scan for view in views]] @ grids)


def view_spacings(collection: Collection, views: Sequence[ViewSpec]) -> Float64[Tensor, "N 3"]:
    """``Float64[N, 3]`` mm per voxel of each view's grid."""
    spacings = collection.spacings[[view.scan for view in views]]
    return torch.from_numpy(spacings * _sizes(views) / _shapes(views))


def _sizes(views: Sequence[ViewSpec]) -> Int[np.ndarray, "N 3"]:
    return np.array([view.box.size for view in views])


def _shapes(views: Sequence[ViewSpec]) -> Int[np.ndarray, "N 3"]:
    return np.array([view.out_shape for view in views])
