"""The way back: from a prepared grid to the voxels of the file that a scan came from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.ndimage import affine_transform


def classes_on(
    grid: tuple[int, ...], probabilities: np.ndarray, to_prepared: np.ndarray, *, cropped: bool, keep: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """The class of every voxel of the file, and (`keep`) what it was chosen by.

    grid           shape ``[X, Y, Z]`` of the file
    probabilities  ``Float[K, D, H, W]`` on the prepared grid, background first
    to_prepared    ``Float64[4, 4]`` voxel of the file -> voxel of the prepared grid
    cropped        beyond the prepared grid lies background; else its border goes on

    Returns ``Int16[X, Y, Z]`` class indices and ``Float32[K, X, Y, Z]``, interpolated linearly: probabilities, not labels, so
    that a coarser prepared grid leaves no steps. Where the prepared grid is the file's, turned, each voxel gets its own value.
    Source: Isensee et al. 2021, nnU-Net (resampling of the softmax).
    """
    kept: list[np.ndarray] = []
    indices, best = np.zeros(grid, dtype=np.int16), np.full(grid, -1, dtype=np.float32)
    for index, values in enumerate(_carried(grid, probabilities, to_prepared, cropped)):  # one at a time: a hundred would not fit
        larger = values > best
        indices[larger], best[larger] = index, values[larger]
        if keep:
            kept.append(values)
    return indices, np.stack(kept) if keep else None


def _carried(grid: tuple[int, ...], probabilities: np.ndarray, to_prepared: np.ndarray, cropped: bool) -> Iterator[np.ndarray]:
    matrix, offset = _cleaned(to_prepared)
    outside = _outside(grid, probabilities.shape[1:], matrix, offset) if cropped else None
    for index, one in enumerate(probabilities):
        values = affine_transform(one.astype(np.float32), matrix, offset, output_shape=grid, order=1, mode="nearest")
        if outside is not None:
            values[outside] = float(index == 0)
        yield values


def _cleaned(to_prepared: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers where there are almost whole ones: a turn of the axes is then exact."""
    rounded = np.round(to_prepared)
    clean = np.where(np.abs(to_prepared - rounded) < 1e-5, rounded, to_prepared)
    return clean[:3, :3], clean[:3, 3]


def _outside(grid: tuple[int, ...], shape: tuple[int, ...], matrix: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """``Bool[X, Y, Z]``: voxels of the file whose centres lie beyond the prepared grid by more than half a voxel."""
    outside = np.zeros(grid, dtype=bool)
    axes = np.ogrid[tuple(slice(n) for n in grid)]
    for row, shift, size in zip(matrix, offset, shape, strict=True):
        place = sum(weight * axis for weight, axis in zip(row, axes, strict=True)) + shift
        outside |= np.broadcast_to((place < -0.5) | (place > size - 0.5), grid)
    return outside
