"""Power: the smallest detectable difference, and effect sizes relative to the spread of replicates."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

from medcl3d.evaluation.statistics.crossed import Components, Estimate, expected
from medcl3d.evaluation.statistics.intervals import Interval

POWER = 0.8
PILOT_LIMIT = 0.8
"""Fraction of pilots whose upper limit of the replicate variance is above the true variance."""
LARGEST_T = 30.0
"""Above this t, scipy's noncentral t is inaccurate; such a large effect needs no interval."""


def _below(t: float, df: float, shift: ArrayLike) -> np.ndarray:
    """Distribution function of the noncentral t; far in the tails scipy returns NaN, replaced by 0 or 1."""
    found = stats.nct.cdf(t, df, shift)
    return np.where(np.isnan(found), np.where(np.less(shift, t), 1.0, 0.0), found)


def power(difference: ArrayLike, error: float, df: float, alpha: float = 0.05) -> np.ndarray:
    """Probability that a two-sided t-test at level `alpha` detects a true `difference`.

    error, df: standard error of the estimated difference and its degrees of freedom.
    """
    critical = stats.t.ppf(1 - alpha / 2, df)
    shift = np.abs(np.asarray(difference, dtype=np.float64)) / error
    return 1 - _below(critical, df, shift) + _below(-critical, df, shift)


def smallest_difference(estimate: Estimate, alpha: float = 0.05, wanted: float = POWER) -> float:
    """The true difference that a comparison with this standard error detects with power `wanted`.

    NaN for one replicate. In Holm's procedure with m arms, the first of them is tested at alpha / m.
    """
    error, df = float(estimate.error), float(estimate.df)
    if not np.isfinite(df):
        return float("nan")
    if error == 0:
        return 0.0
    critical = float(stats.t.ppf(1 - alpha / 2, df))
    largest = critical + 10 * (1 + critical)
    return error * float(
        optimize.brentq(lambda shift: float(power(shift, 1.0, df, alpha)) - wanted, 0.0, largest)
    )


def replicates_needed(
    difference: float, components: Components, num_cases: int | None, alpha: float = 0.05, most: int = 1000
) -> int | None:
    """The smallest number of replicates, 2 or more, that detects a true `difference` with the power `POWER`.

    None if `most` are too few: the variance of test cases does not decrease with replicates.
    """

    def enough(number: int) -> bool:
        return smallest_difference(expected(components, number, num_cases), alpha) <= difference

    return bisect_left(range(most + 1), True, lo=2, key=enough) if enough(most) else None


def upper_limit_of_replicates(
    differences: ArrayLike, components: Components, num_cases: int | None
) -> Components:
    """Variance components of a pilot, with the variance of replicates at its upper 80% limit.

    differences  ``[..., R]``, one mean difference per replicate; components: estimated from the same runs

    The estimated variance of the differences is distributed as chi-square over its R - 1 degrees of freedom.
    With two replicates it is below the true variance in 68% of pilots, so that a comparison planned with it
    would be too small. Source: Browne 1995, Statistics in Medicine 14 (sample size from the upper limit of a
    pilot's variance).
    """
    values = np.asarray(differences, dtype=np.float64)
    df = values.shape[-1] - 1
    largest = values.var(-1, ddof=1) * df / stats.chi2.ppf(1 - PILOT_LIMIT, df)
    of_cases = components.residual / (num_cases or 1)
    return Components(np.maximum(0.0, largest - of_cases), components.case, components.residual)


def effect_size(differences: ArrayLike, confidence: float = 0.95) -> Interval | None:
    """Mean of ``differences [R]`` in units of their standard deviation; None if that is 0, or R < 3.

    The estimate has Hedges' correction for few replicates; the limits are from the noncentral t-distribution.
    The variation of test cases is not included. Source: Hedges 1981; Cumming and Finch 2001.
    """
    values = np.asarray(differences, dtype=np.float64)
    num = len(values)
    spread = float(values.std(ddof=1)) if num > 2 else 0.0  # for two replicates, the correction gives 0
    if spread <= 1e-12 * abs(float(values.mean())):
        return None
    df, standard = num - 1, float(values.mean()) / spread
    corrected = standard * float(
        np.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2)) / np.sqrt(df / 2)
    )
    t = standard * np.sqrt(num)
    if abs(t) > LARGEST_T:
        return Interval(corrected, float("nan"), float("nan"), num)

    def limit(share: float) -> float:
        # The noncentrality for which a fraction `share` of t is below the observed value.
        reach = 10 + 3 * abs(t)
        return float(
            optimize.brentq(lambda shift: float(_below(t, df, shift)) - share, t - reach, t + reach)
        ) / np.sqrt(num)

    return Interval(corrected, limit((1 + confidence) / 2), limit((1 - confidence) / 2), num)
