"""Intervals and tests over replicates with one number each; `crossed.py` adds test cases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

MIN_REPLICATES_FOR_TEST = 6
"""For fewer than six pairs, the smallest two-sided exact Wilcoxon p (2 / 2^n) is above 0.05."""
MIN_REPLICATES_FOR_CLAIM = 10


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

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is outside the interval."""
        return self.known and (self.low > 0 or self.high < 0)


def _finite(values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"one finite number per replicate is needed, not {array!r}")
    return array


def _differences(values: ArrayLike, reference: ArrayLike) -> np.ndarray:
    first, second = _finite(values), _finite(reference)
    if len(first) != len(second):
        raise ValueError(f"paired values are needed, not {len(first)} and {len(second)} replicates")
    return first - second


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of `values` ``[n]`` with Student's t-interval, df = n - 1. ValueError unless all are finite."""
    array = _finite(values)
    mean, n = float(array.mean()), len(array)
    if n == 1:
        return Interval(mean, float("nan"), float("nan"), 1)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * array.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def wilcoxon_exact(values: ArrayLike, reference: ArrayLike) -> float:
    """Two-sided p of Wilcoxon's signed-rank test, exact with ties: all 2^n signs of the mid-ranks.

    Differences of 0 are dropped, as in Wilcoxon (1945). The distribution of the rank sum is given by the
    coefficients of prod_k (1 + x^rank_k), with doubled ranks, so that mid-ranks are integers. scipy's "exact"
    uses the distribution without ties; its "auto" permutes the mid-ranks, but only for n <= 13.
    """
    difference = _differences(values, reference)
    scale = max(np.abs(_finite(values)).max(), np.abs(_finite(reference)).max())
    if scale > 0:
        # Equal differences may differ by rounding errors; rounding restores ties.
        difference = np.round(difference / scale, 12)
    difference = difference[difference != 0]
    if not len(difference):
        return 1.0
    ranks = np.rint(2 * stats.rankdata(np.abs(difference))).astype(int)
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
