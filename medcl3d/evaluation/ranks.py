"""Arms ranked over several data sets, and how far apart mean ranks must be to be told from chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

MIN_DATA_SETS = 5
"""Of fewer, mean ranks say next to nothing, and no critical difference is drawn."""
MIN_ARMS = 3


@dataclass(frozen=True)
class Ranks:
    """Mean rank of each arm (1 is best) over `num_sets` data sets.

    p         of Friedman's test that all arms are alike
    critical  Nemenyi's critical difference: mean ranks that lie nearer are not told apart, at 5% over all pairs
    """

    mean: tuple[float, ...]
    num_sets: int
    p: float
    critical: float

    def groups(self) -> list[tuple[int, ...]]:
        """The largest sets of arms of which no two are told apart, best first; an arm alone makes none."""
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
        raise ValueError(f"{n} data sets and {k} arms; {MIN_DATA_SETS} and {MIN_ARMS} are the fewest to rank over")
    each = stats.rankdata(-values if higher else values, axis=1)
    equal = bool((each == each[:, :1]).all())
    p = 1.0 if equal else float(stats.friedmanchisquare(*each.T).pvalue)
    quantile = float(stats.studentized_range.ppf(0.95, k, np.inf)) / np.sqrt(2)
    return Ranks(tuple(each.mean(0).tolist()), n, p, float(quantile * np.sqrt(k * (k + 1) / (6 * n))))
