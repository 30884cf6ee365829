"""Label efficiency: the number of labels with which the reference would be as good."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def labels_needed(curve: Mapping[int, float], value: float, higher: bool = True) -> tuple[str, float]:
    """Labels at which a curve reaches `value`: ``("at", n)``, ``("more than", n)`` or ``("fewer than", n)``.

    Interpolated linearly in the logarithm of the labels, not extrapolated. For a curve that is not monotone,
    the smallest such number. higher: larger values are better. ValueError for an empty curve.
    """
    if not curve:
        raise ValueError("the curve has no points")
    counts = sorted(curve)
    sign = 1.0 if higher else -1.0
    means = [sign * curve[n] for n in counts]
    wanted = sign * value
    if means[0] > wanted:
        return "fewer than", float(counts[0])
    for k, n in enumerate(counts):
        if means[k] == wanted:
            return "at", float(n)
        if k + 1 < len(counts) and means[k] < wanted < means[k + 1]:
            share = (wanted - means[k]) / (means[k + 1] - means[k])
            return "at", float(np.exp(np.log(n) + share * (np.log(counts[k + 1]) - np.log(n))))
    return "more than", float(counts[-1])
