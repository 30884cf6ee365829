"""Outlying replicates of an arm, for example collapsed runs."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

MIN_REPLICATES = 4
"""For three, the median absolute deviation is hardly informative about the spread."""
LIMIT = 5.0
LIMIT_OF_FEW = 70.0
"""The limit for n replicates is the larger of LIMIT and LIMIT_OF_FEW / n.

Otherwise normal replicates would be flagged too often for small n.
"""
FLOOR = 0.01
"""Lower bound of the scaled median absolute deviation, as a fraction of the size of the median."""
SCALE = 1.4826
"""Factor from the median absolute deviation of normal values to their standard deviation."""


def limit(num_replicates: int) -> float:
    """Number of scaled median absolute deviations above which a replicate is flagged."""
    return max(LIMIT, LIMIT_OF_FEW / num_replicates)


def deviations(values: ArrayLike) -> np.ndarray:
    """Distance of ``values [..., R]`` from their median, in scaled median absolute deviations.

    The unit is at least a hundredth of the size of the median. All 0 for fewer than four replicates.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.shape[-1] < MIN_REPLICATES:
        return np.zeros_like(array)
    median = np.median(array, axis=-1, keepdims=True)
    distance = np.abs(array - median)
    unit = np.maximum(SCALE * np.median(distance, axis=-1, keepdims=True), FLOOR * np.abs(median))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(distance == 0, 0.0, distance / unit)


def far(values: ArrayLike) -> np.ndarray:
    """``Bool[..., R]``: whether a replicate is above the limit."""
    found = deviations(values)
    return found > limit(max(1, found.shape[-1]))
