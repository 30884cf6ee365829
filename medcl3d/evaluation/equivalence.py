"""Equivalence: the difference of two arms is smaller than a margin that was declared before the runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from medcl3d.evaluation.crossed import Estimate
from medcl3d.evaluation.statistics import Interval


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests of one difference.

    interval  of confidence 1 - 2 alpha: 90% for tests at 5%. It lies within the margin exactly if the unadjusted p is below alpha
    adjusted  p, adjusted over the declared family; None if nothing is tested
    """

    interval: Interval
    adjusted: float | None


def equivalence_p(estimate: Estimate, margin: float) -> np.ndarray:
    """p of the null hypothesis that the true difference is `margin` or more in either direction: the larger of two one-sided p.

    NaN for one replicate. Source: Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15.
    """
    left = margin - np.abs(estimate.mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(left == 0, 0.0, left / estimate.error)
    return np.where(np.isnan(estimate.df), np.nan, stats.t.sf(t, estimate.df))
