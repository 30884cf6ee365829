"""Stability of the ranking of arms under resampling of replicates and test cases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

MIN_REPLICATES = 3
"""Two replicates give only three different resamples."""
RESAMPLES = 2000
TIE = 1e-9
"""Means that differ by less than this fraction of the largest are equal, except for rounding."""


@dataclass(frozen=True)
class RankStability:
    """Stability of ranks, one value per arm.

    best       fraction of resamples in which the arm has the best mean; divided among ties
    rank       mean rank over the resamples, 1 is best
    low, high  interval with 95% of the ranks
    """

    best: tuple[float, ...]
    rank: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def rank_stability(
    values: np.ndarray, higher: bool = True, seed: int = 0, resamples: int = RESAMPLES
) -> RankStability | None:
    """Stability of ``values [arms, R]`` or ``[arms, R, C]``.

    None for fewer than three replicates or two arms.

    Replicates and cases are drawn with replacement, independently of each other, and the same for all arms.
    Source: Owen 2007, Annals of Applied Statistics 1 (the pigeonhole bootstrap of crossed random effects).
    """
    table = np.asarray(values, dtype=np.float64)
    table = table[..., None] if table.ndim == 2 else table
    arms, num, cases = table.shape
    if num < MIN_REPLICATES or arms < 2:
        return None
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(num, np.full(num, 1 / num), size=resamples) / num
    weights = rng.multinomial(cases, np.full(cases, 1 / cases), size=resamples) / cases
    means = np.einsum("arb,br->ba", table @ weights.T, drawn) * (1 if higher else -1)
    step = TIE * max(float(np.abs(means).max()), np.finfo(float).tiny)
    means = np.round(means / step) * step
    first = means == means.max(axis=1, keepdims=True)
    ranks = stats.rankdata(-means, axis=1)
    low, high = np.percentile(ranks, [2.5, 97.5], axis=0, method="nearest")
    best = (first / first.sum(axis=1, keepdims=True)).mean(axis=0)
    return RankStability(*(tuple(column.tolist()) for column in (best, ranks.mean(axis=0), low, high)))
