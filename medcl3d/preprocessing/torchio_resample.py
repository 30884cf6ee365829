"""Resampling by TorchIO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torchio as tio

from medcl3d.preprocessing.grid import grid_at

FEWEST_TO_SMOOTH = 4  # voxels along an axis that ITK's recursive Gaussian needs


def resample(
    voxels: np.ndarray, affine: np.ndarray, spacing_mm: tuple[float, float, float], *, label: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Resample ``[C, X, Y, Z]`` to a spacing: linear (smoothed first where voxels grow) for images, nearest
    for labels.

    Returns voxels of the same dtype and their affine ``[4, 4]``; world positions stay.
    """
    grid = grid_at(voxels.shape[1:], affine, spacing_mm)
    thin = [0 if n >= FEWEST_TO_SMOOTH else FEWEST_TO_SMOOTH for n in voxels.shape[1:]]
    # Of spacings, TorchIO would make grids without a voxel.
    target: Any = grid if any(thin) or min(grid[0]) == 1 else spacing_mm
    make = tio.LabelMap if label else tio.ScalarImage
    image = make(tensor=torch.from_numpy(_repeated(voxels, thin)), affine=_moved(affine, thin))
    how: dict[str, Any] = {"image_interpolation": "linear", "label_interpolation": "nearest"}
    out = tio.Resample(target, antialias=True, **how)(image)
    return out.data.numpy().astype(voxels.dtype), np.asarray(out.affine, dtype=np.float64)


def _repeated(voxels: np.ndarray, times: Sequence[int]) -> np.ndarray:
    """Repeat the outermost planes at both ends, as the filter assumes, which needs a few planes."""
    if not any(times):
        return np.ascontiguousarray(voxels)
    return np.pad(voxels, [(0, 0), *((n, n) for n in times)], mode="edge")


def _moved(affine: np.ndarray, planes: Sequence[int]) -> np.ndarray:
    """The affine of a grid that starts so many planes earlier."""
    moved = affine.copy()
    moved[:3, 3] -= affine[:3, :3] @ np.asarray(planes)
    return moved
