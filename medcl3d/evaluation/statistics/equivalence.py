"""Equivalence: the difference of two arms is smaller than a preregistered margin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from medcl3d.evaluation.statistics.crossed import Estimate
from medcl3d.evaluation.statistics.intervals import Interval


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests of one difference.

    interval  confidence 1 - 2 alpha: 90% for tests at 5%; inside the margin if and only if the unadjusted p
              is below alpha
    adjusted  p adjusted over the preregistered family; None if there is no test
    """

    interval: Interval
    adjusted: float | None


def equivalence_p(estimate: Estimate, margin: float) -> np.ndarray:
    """p for a true difference of at least `margin` in size as null hypothesis: the larger of two one-sided p.

    NaN for one replicate. Source: Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15.
    """
    distance = margin - np.abs(estimate.mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(distance == 0, 0.0, distance / estimate.error)
    return np.where(np.isnan(estimate.df), np.nan, stats.t.sf(t, estimate.df))
