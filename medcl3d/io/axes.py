"""The axes of a grid in the order and direction of another grid's."""

from __future__ import annotations

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform


def axes_like(affine: np.ndarray, other: np.ndarray) -> np.ndarray:
    """``[3, 2]``: the transform of nibabel that turns the axes of one affine to those of another."""
    turn: np.ndarray = ornt_transform(io_orientation(affine), io_orientation(other))
    return turn


def turned_grid(
    shape: tuple[int, ...], affine: np.ndarray, turn: np.ndarray
) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of a grid after a transform of `axes_like`."""
    axes = np.argsort(turn[:, 0]).astype(int)
    return tuple(shape[axis] for axis in axes), affine @ inv_ornt_aff(turn, shape)


def turned(voxels: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """``[X, Y, Z]`` after a transform of `axes_like`."""
    made: np.ndarray = apply_orientation(voxels, turn)
    return made
