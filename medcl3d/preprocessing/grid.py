"""Grids of another spacing around the same centre."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def grid_at(
    shape: Sequence[int], affine: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine ``Float64[4, 4]`` of a grid with another spacing, the same centre and the same axes.

    It is the largest that fits into the old grid, as in TorchIO, so that nothing is extrapolated. A single
    plane remains one, and an axis shorter than a new voxel becomes one voxel.
    """
    old, new_mm = np.asarray(shape[:3]), np.asarray(spacing_mm, dtype=np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    size = np.where(old == 1, 1, np.clip(np.floor(old * spacing / new_mm), 1, 1e15))
    axes = affine[:3, :3] / spacing
    made = np.eye(4)
    made[:3, :3] = axes * new_mm
    made[:3, 3] = affine[:3, :3] @ ((old - 1) / 2) + affine[:3, 3] - axes @ ((size - 1) / 2 * new_mm)
    x, y, z = size.tolist()
    return (int(x), int(y), int(z)), made
