"""A patch size from the shapes and the spacing of scans, with strides of an encoder that fit it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from medcl3d.core.geometry import Triple, triple

NUM_STAGES = 4
"""Stages of the packaged U-Net."""
MIN_MAP = 4
"""Voxels of the coarsest map along an axis that is halved, as in the packaged configurations."""
ANISOTROPIC = 2.0
"""An axis is not halved while its voxels are so much longer than the finest (nnU-Net's rule)."""
MOST_OF_A_SCAN = 0.6
"""Share of a scan beyond which two crops hardly differ; each axis but a thin one is then shortened."""
SHORTENED, THIN = 0.8, 16
Strides = list[int | list[int]]


def patch_and_strides(
    shapes: ArrayLike, spacings: ArrayLike, edge: int, num_stages: int = NUM_STAGES
) -> tuple[Triple, Strides]:
    """A patch for contrastive crops, in voxels, and the strides of the stages of a U-Net, finest first.

    shapes    ``Int[n, 3]`` voxels of the scans
    spacings  ``Float[n, 3]`` mm per voxel
    edge      the patch has about ``edge ** 3`` voxels, a choice of memory and time

    The patch is a cube in mm if the scans allow it: thick slices have fewer voxels. It is at most as long as
    the median scan along every axis, so that smaller scans are padded; what a short axis lacks is added along
    the others. Short axes and long voxels are halved less often.
    """
    limit = np.median(np.asarray(shapes, dtype=float), axis=0)
    spacing_mm = np.median(np.asarray(spacings, dtype=float), axis=0)
    size = _extent(limit, spacing_mm, edge**3)
    if np.prod(size / limit) > MOST_OF_A_SCAN:
        size = _extent(np.where(limit < THIN, limit, SHORTENED * limit), spacing_mm, edge**3)
    strides, total = _strides(size, spacing_mm, num_stages)
    return triple(np.maximum(total, np.floor(size / total) * total).astype(int).tolist()), strides


def _extent(limit: np.ndarray, spacing_mm: np.ndarray, num_voxels: int) -> np.ndarray:
    """``Float64[3]`` voxels of a cube in mm with `num_voxels`, no longer than `limit` along any axis."""
    size, free = np.zeros(3), np.ones(3, dtype=bool)
    while free.any():
        left = num_voxels / np.prod(size[~free])
        edge_mm = (left * np.prod(spacing_mm[free])) ** (1 / free.sum())
        size[free] = edge_mm / spacing_mm[free]
        over = free & (size > limit)
        if not over.any():
            break
        size[over], free = limit[over], free & ~over
    return np.maximum(size, 1.0) + 1e-6


def _strides(size: np.ndarray, spacing_mm: np.ndarray, num_stages: int) -> tuple[Strides, np.ndarray]:
    """Strides of the stages, and their product per axis."""
    strides: Strides = [1]
    total, voxel_mm = np.ones(3, dtype=int), spacing_mm.copy()
    for _ in range(num_stages - 1):
        long_enough = size >= 2 * total * MIN_MAP
        halves = long_enough & (voxel_mm < ANISOTROPIC * voxel_mm.min())
        step = np.where(halves if halves.any() else long_enough, 2, 1)
        strides.append(step.tolist() if step.min() < step.max() else int(step[0]))
        total, voxel_mm = total * step, voxel_mm * step
    return strides, total
