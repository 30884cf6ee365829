"""Tests of arms at endpoints in a preregistered order, with control of the familywise error."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def in_order(p_values: ArrayLike) -> np.ndarray:
    """Adjusted p-values of ``p_values [arms, endpoints]``, with endpoints in their preregistered order.

    An arm is tested at an endpoint only if its previous endpoint was rejected. Every arm starts with an equal
    share of alpha, uses it for each endpoint in turn, and passes it to the other arms once all its endpoints
    are rejected. The familywise error is at most alpha for any dependence of the p-values. With one endpoint
    this is Holm's procedure, with one arm fixed-sequence testing. Source: Bretz, Maurer, Brannath and Posch
    2009, Statistics in Medicine 28 (algorithm 2).
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 2 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values [arms, endpoints] must be in [0, 1], not {p!r}")
    arms, endpoints = p.shape
    adjusted = np.ones_like(p)
    position = np.zeros(arms, dtype=int)
    largest = 0.0
    while (remaining := np.flatnonzero(position < endpoints)).size:
        arm = remaining[np.argmin(p[remaining, position[remaining]])]
        # Each remaining arm has the share alpha / their number.
        largest = max(largest, min(1.0, float(p[arm, position[arm]]) * remaining.size))
        adjusted[arm, position[arm]] = largest
        position[arm] += 1
    return adjusted
