"""Intervals and tests over replicates with one number each; `crossed.py` adds test cases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

MIN_REPLICATES_FOR_TEST = 6
"""For fewer than six pairs, the smallest two-sided exact Wilcoxon p (2 / 2^n) is above 0.05."""
MIN_REPLICATES_FOR_CLAIM = 10
MIN_CASES_FOR_TEST = 5
"""For a test; with 2, 95% intervals of ten replicates cover the true difference in 88%."""


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval; `low` and `high` are NaN if `n` is 1."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def known(self) -> bool:
        """Whether the interval is defined."""
        return bool(np.isfinite(self.low))

    def within(self, low: float, high: float) -> Interval:
        """The interval, cut to a range."""
        return Interval(self.mean, max(self.low, low), min(self.high, high), self.n) if self.known else self

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is outside the interval."""
        return self.known and (self.low > 0 or self.high < 0)


def wilcoxon_exact(values: ArrayLike, reference: ArrayLike) -> float:
    """Two-sided p of Wilcoxon's signed-rank test, exact with ties: all 2^n signs of the mid-ranks.

    Differences of 0 are dropped, as in Wilcoxon (1945). The distribution of the rank sum is given by the
    coefficients of prod_k (1 + x^rank_k), with doubled ranks, so that mid-ranks are integers. scipy's "exact"
    uses the distribution without ties; its "auto" permutes the mid-ranks, but only for n <= 13.
    """
    first, second = np.asarray(values, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or not np.isfinite([first, second]).all():
        raise ValueError(f"paired finite values are needed, not {first!r} and {second!r}")
    difference, scale = first - second, max(np.abs(first).max(), np.abs(second).max())
    if scale > 0:
        # Equal differences may differ by rounding errors; rounding restores ties.
        difference = np.round(difference / scale, 12)
    difference = difference[difference != 0]
    if not len(difference):
        return 1.0
    from scipy.stats import rankdata  # its import takes a second, which a pretraining can save

    ranks = np.rint(2 * rankdata(np.abs(difference))).astype(int)
    ways = np.zeros(ranks.sum() + 1)
    ways[0] = 1
    for rank in ranks:
        ways[rank:] = ways[rank:] + ways[: len(ways) - rank]
    observed = ranks[difference > 0].sum()
    smaller = min(observed, ranks.sum() - observed)
    return float(min(1.0, 2 * ways[: smaller + 1].sum() / ways.sum()))


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm's step-down adjusted p-values ``[m]`` of one preregistered family (Holm 1979).

    ValueError for NaN.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must be in [0, 1], not {p!r}")
    from statsmodels.stats.multitest import multipletests

    return np.asarray(multipletests(p, method="holm")[1]) if len(p) else p


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
