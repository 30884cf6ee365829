"""Percentiles of many values without sorting them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

SAMPLE = 8192
"""Number of values in the sample that brackets a percentile."""
WIDTH = 5.0  # standard deviations of a percentile of the sample on each side; a miss costs time only


def percentiles_of(values: np.ndarray, wanted: Sequence[float]) -> list[float]:
    """Percentiles of finite ``Float32`` values of any shape, interpolated linearly.

    As `np.percentile`, within the rounding of its interpolation: a sample of the values gives two limits
    around each percentile, and only the values between them are ordered. Values without such limits, as with
    a pattern that the sample misses, are ordered as a whole. ValueError: no values.
    """
    flat = values.reshape(-1)
    if not flat.size:
        raise ValueError("no values have no percentile")
    sample = np.sort(flat[:: max(1, flat.size // SAMPLE)])
    return [_percentile(flat, sample, one / 100) for one in wanted]


def _percentile(values: np.ndarray, sample: np.ndarray, fraction: float) -> float:
    """The value at the position (n - 1) * fraction in the order of the values."""
    position = (values.size - 1) * fraction
    first = math.floor(position)
    second = min(first + 1, values.size - 1)
    low, high = _limits(sample, fraction)
    between = values[(values >= low) & (values <= high)]
    below = int(np.count_nonzero(values < low))
    if not below <= first <= second < below + between.size:
        below, between = 0, values
    ordered = np.partition(between, (first - below, second - below))
    before, after = float(ordered[first - below]), float(ordered[second - below])
    return float(np.float32(before + (after - before) * (position - first)))


def _limits(sample: np.ndarray, fraction: float) -> tuple[float, float]:
    """Limits below and above the percentile of all values, unless the sample is unusual."""
    middle = (sample.size - 1) * fraction
    width = WIDTH * math.sqrt(sample.size * fraction * (1 - fraction)) + 2
    low, high = math.floor(middle - width), math.ceil(middle + width)
    return (
        -math.inf if low < 0 else float(sample[low]),
        math.inf if high >= sample.size else float(sample[high]),
    )
