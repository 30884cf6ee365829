"""Cross-dataset ranking of arms, with critical differences of mean ranks, and a common scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

MIN_DATA_SETS = 5
"""For fewer data sets, mean ranks are hardly informative, and no critical difference is reported."""
MIN_ARMS = 3


@dataclass(frozen=True)
class Ranks:
    """Mean rank of each arm (1 is best) over `num_sets` data sets.

    p         p-value of Friedman's test that all arms are equal
    critical  Nemenyi's critical difference: closer mean ranks are not distinguishable, at 5% over all pairs
    """

    mean: tuple[float, ...]
    num_sets: int
    p: float
    critical: float

    def groups(self) -> list[tuple[int, ...]]:
        """The largest sets of two or more arms that are not distinguishable from each other, best first."""
        order = sorted(range(len(self.mean)), key=lambda arm: self.mean[arm])
        found: list[tuple[int, ...]] = []
        for first in range(len(order)):
            near = [arm for arm in order[first:] if self.mean[arm] - self.mean[order[first]] <= self.critical]
            if len(near) > 1 and not any(set(near) <= set(other) for other in found):
                found.append(tuple(near))
        return found


def ranks(values: np.ndarray, higher: bool = True) -> Ranks:
    """Ranks of a metric ``[data sets, arms]``; ties share the mean of their ranks.

    ValueError for fewer than five data sets or three arms. Source: Demsar, JMLR 2006, sections 3.2.2 and 4.
    """
    n, k = values.shape
    if n < MIN_DATA_SETS or k < MIN_ARMS:
        raise ValueError(
            f"{n} data sets and {k} arms; at least {MIN_DATA_SETS} and {MIN_ARMS} are needed for ranks"
        )
    each = stats.rankdata(-values if higher else values, axis=1)
    equal = bool((each == each[:, :1]).all())
    p = 1.0 if equal else float(stats.friedmanchisquare(*each.T).pvalue)
    quantile = float(stats.studentized_range.ppf(0.95, k, np.inf)) / np.sqrt(2)
    return Ranks(tuple(each.mean(0).tolist()), n, p, float(quantile * np.sqrt(k * (k + 1) / (6 * n))))


def normalised(
    values: Mapping[str, float], low: float, high: float, higher: bool = True
) -> dict[str, float] | None:
    """Arm -> (value - low) / (high - low), a common scale of tasks; None unless `high` is better than `low`.

    Below 0: worse than `low`; above 1: better than `high`. higher: larger values of the metric are better.
    """
    span = high - low
    if not (span > 0 if higher else span < 0):
        return None
    return {arm: (value - low) / span for arm, value in values.items()}
