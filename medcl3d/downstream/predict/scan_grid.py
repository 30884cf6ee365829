"""Resampling of predictions from a prepared grid to the grid of the original file."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.ndimage import affine_transform


def classes_on(
    grid: tuple[int, ...],
    probabilities: np.ndarray,
    to_prepared: np.ndarray,
    *,
    cropped: bool,
    keep: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Class indices on the grid of a file and, with `keep`, the resampled probabilities.

    grid           shape ``[X, Y, Z]`` of the file
    probabilities  ``Float[K, D, H, W]`` on the prepared grid, background first
    to_prepared    ``Float64[4, 4]`` voxel of the file -> voxel of the prepared grid
    cropped        True: background outside the prepared grid; False: its border values are extended

    Returns ``Int16[X, Y, Z]`` class indices and ``Float32[K, X, Y, Z]`` or None. Probabilities are
    interpolated linearly, since labels from a coarser prepared grid would have steps. If the prepared grid is
    a permutation of the axes of the file, each voxel gets its own value. Source: Isensee et al. 2021, nnU-Net
    (resampling of the softmax).
    """
    kept: list[np.ndarray] = []
    indices, best = np.zeros(grid, dtype=np.int16), np.full(grid, -1, dtype=np.float32)
    for index, values in enumerate(
        _resampled(grid, probabilities, to_prepared, cropped)
    ):  # one class at a time, to limit memory
        larger = values > best
        indices[larger], best[larger] = index, values[larger]
        if keep:
            kept.append(values)
    return indices, np.stack(kept) if keep else None


def _resampled(
    grid: tuple[int, ...], probabilities: np.ndarray, to_prepared: np.ndarray, cropped: bool
) -> Iterator[np.ndarray]:
    matrix, offset = _cleaned(to_prepared)
    beyond = outside(grid, probabilities.shape[1:], matrix, offset) if cropped else None
    for index, one in enumerate(probabilities):
        values = affine_transform(
            one.astype(np.float32), matrix, offset, output_shape=grid, order=1, mode="nearest"
        )
        if beyond is not None:
            values[beyond] = float(index == 0)
        yield values


def _cleaned(to_prepared: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round entries that are almost integers, so that a permutation of axes is exact."""
    rounded = np.round(to_prepared)
    clean = np.where(np.abs(to_prepared - rounded) < 1e-5, rounded, to_prepared)
    return clean[:3, :3], clean[:3, 3]


def outside(
    grid: tuple[int, ...],
    shape: tuple[int, ...],
    matrix: np.ndarray,
    offset: np.ndarray,
    tolerance: float = 0.0,
) -> np.ndarray:
    """``Bool[X, Y, Z]``: voxels of the file with centres more than half a voxel outside the prepared grid.

    tolerance: in voxels of the prepared grid
    """
    found = np.zeros(grid, dtype=bool)
    axes = np.ogrid[tuple(slice(n) for n in grid)]
    for row, shift, size in zip(matrix, offset, shape, strict=True):
        position = sum(weight * axis for weight, axis in zip(row, axes, strict=True)) + shift
        beyond = (position < -0.5 - tolerance) | (position > size - 0.5 + tolerance)
        found |= np.broadcast_to(beyond, grid)
    return found
