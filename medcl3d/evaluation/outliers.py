"""Replicates that lie far from the others of their arm: runs that collapsed, say."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

MIN_REPLICATES = 4
"""Of three, the median deviation says next to nothing of the spread."""
LIMIT = 5.0
LIMIT_OF_FEW = 70.0
"""With n replicates the limit is LIMIT, or LIMIT_OF_FEW / n if that is more, so that few normal replicates are seldom flagged."""
FLOOR = 0.01
"""Of the median's size: the least that a scaled median absolute deviation counts as."""
SCALE = 1.4826
"""Makes the median absolute deviation of normal values their standard deviation."""


def limit(num_replicates: int) -> float:
    """Scaled median absolute deviations beyond which a replicate is flagged."""
    return max(LIMIT, LIMIT_OF_FEW / num_replicates)


def deviations(values: ArrayLike) -> np.ndarray:
    """Distance of ``values [..., R]`` from their median, in scaled median absolute deviations.

    The unit is at least a hundredth of the median's size. 0 for all of fewer than four replicates.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.shape[-1] < MIN_REPLICATES:
        return np.zeros_like(array)
    middle = np.median(array, axis=-1, keepdims=True)
    away = np.abs(array - middle)
    unit = np.maximum(SCALE * np.median(away, axis=-1, keepdims=True), FLOOR * np.abs(middle))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(away == 0, 0.0, away / unit)


def far(values: ArrayLike) -> np.ndarray:
    """``Bool[..., R]``: which replicates are beyond the limit."""
    away = deviations(values)
    return away > limit(max(1, away.shape[-1]))
