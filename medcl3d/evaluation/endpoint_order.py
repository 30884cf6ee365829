"""Tests of several arms at several endpoints in a declared order, with one familywise error for all of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def in_order(p_values: ArrayLike) -> np.ndarray:
    """Adjusted p-values of ``p_values [arms, endpoints]``, the endpoints in their declared order.

    An arm is tested at an endpoint only if it was rejected at the one before. Every arm begins with an equal share of alpha,
    keeps it from endpoint to endpoint, and leaves it to the other arms once all its endpoints are rejected. The familywise
    error is at most alpha for any dependence of the p-values. With one endpoint this is Holm's procedure, with one arm it is
    fixed-sequence testing. Source: Bretz, Maurer, Brannath and Posch 2009, Statistics in Medicine 28 (algorithm 2).
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 2 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values [arms, endpoints] lie in [0, 1], not {p!r}")
    arms, endpoints = p.shape
    adjusted = np.ones_like(p)
    reached = np.zeros(arms, dtype=int)
    largest = 0.0
    while (open_ := np.flatnonzero(reached < endpoints)).size:
        arm = open_[np.argmin(p[open_, reached[open_]])]
        # The share of each arm that is left is alpha / their number.
        largest = max(largest, min(1.0, float(p[arm, reached[arm]]) * open_.size))
        adjusted[arm, reached[arm]] = largest
        reached[arm] += 1
    return adjusted
