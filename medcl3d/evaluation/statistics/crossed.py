"""Means over crossed replicates and test cases: each replicate is measured on each case, both are random.

Model of a difference (or a value) of replicate r on case c:

    d[r, c] = mean + replicate[r] + case[c] + residual[r, c],

with three independent random terms. Intervals are far too short if cases are pooled as if each replicate had
new cases, or if replicates are averaged as if the test cases were fixed.
All functions accept any number of leading axes, so that a thousand simulated comparisons are one call.

Source: Searle, Casella and McCulloch 1992, Variance Components, chapter 4 (crossed classification, method of
moments); Satterthwaite 1946 for the degrees of freedom. Readers and cases in diagnostic studies have the same
design: Obuchowski and Rockette 1995; Hillis 2007, for the lower bound of the case component; Gallas 2006.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from medcl3d.evaluation.statistics.intervals import MIN_REPLICATES_FOR_TEST, Interval

ROUNDING = 1e-12
"""Standard errors below this fraction of the mean are rounding errors of 0."""


@dataclass(frozen=True)
class Components:
    """Variance components ``Float[...]``.

    `case` and `residual` are 0 if only means of replicates are known.
    """

    replicate: np.ndarray
    case: np.ndarray
    residual: np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A mean ``Float[...]``, its variance, and the degrees of freedom of that variance.

    num_cases  None if the variance includes only replicates: conclusions then apply only to these test cases
    """

    mean: np.ndarray
    variance: np.ndarray
    df: np.ndarray
    num_replicates: int
    num_cases: int | None
    components: Components

    @property
    def error(self) -> np.ndarray:
        """Standard error; 0 if it is only a rounding error."""
        root = np.sqrt(self.variance)
        return np.where(root <= ROUNDING * np.abs(self.mean), 0.0, root)

    def limits(self, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper limits of Student's t-interval; NaN for one replicate."""
        half = stats.t.ppf((1 + confidence) / 2, self.df) * self.error
        return self.mean - half, self.mean + half

    def interval(self, confidence: float = 0.95) -> Interval:
        """The mean of one comparison with its interval."""
        low, high = self.limits(confidence)
        return Interval(float(self.mean), float(low), float(high), self.num_replicates)

    def p_value(self) -> np.ndarray:
        """Two-sided p for a mean of 0.

        1 if all differences are 0, 0 if all are equal, NaN for one replicate.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(self.mean == 0, 0.0, np.abs(self.mean) / self.error)
        return np.where(np.isnan(self.df), np.nan, 2 * stats.t.sf(t, self.df))

    def equivalence_p(self, margin: float) -> np.ndarray:
        """The larger of two one-sided p, with a true mean of at least `margin` in size as null hypothesis.

        NaN for one replicate. Source: Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15.
        """
        distance = margin - np.abs(self.mean)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(distance == 0, 0.0, distance / self.error)
        return np.where(np.isnan(self.df), np.nan, stats.t.sf(t, self.df))


def _finite(values: ArrayLike, unit: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if not array.size or not np.isfinite(array).all():
        raise ValueError(f"one finite number per {unit} is needed, not {array!r}")
    return array


def over_replicates(values: ArrayLike) -> Estimate:
    """The mean of ``[..., R]`` with its variance over replicates; the paired t-test for differences."""
    array = _finite(values, "replicate")
    if not array.ndim:
        raise ValueError("one number per replicate is needed, not a scalar")
    num = array.shape[-1]
    mean = array.mean(-1)
    spread = array.var(-1, ddof=1) if num > 1 else np.full_like(mean, np.nan)
    none = np.zeros_like(mean)
    df = np.full_like(mean, num - 1 if num > 1 else np.nan)
    return Estimate(mean, spread / num, df, num, None, Components(spread, none, none))


def over_replicates_and_cases(values: ArrayLike) -> Estimate:
    """The mean of ``[..., R, C]`` with its variance over new replicates and new cases.

    With mean squares MS of replicates, cases and residual, the variance is

        (MS_replicate + max(0, MS_case - MS_residual)) / (R C).

    This is the moment estimator. Without the max it is unbiased; with it, it is at least the variance over
    replicates only. Degrees of freedom: Satterthwaite's, or those of the factor with fewer levels if larger
    (as in Hillis 2007 for replicates). Fewer than six replicates may agree by chance, so MS_replicate is then
    at least MS_residual, as is its expectation. One case: as `over_replicates`.
    """
    array = _finite(values, "replicate and case")
    if array.ndim < 2:
        raise ValueError(f"replicates x cases are needed, not an array of shape {array.shape}")
    num, cases = array.shape[-2:]
    by_replicate = array.mean(-1)
    if num == 1 or cases == 1:
        return over_replicates(by_replicate)
    mean = array.mean((-2, -1))
    by_case = array.mean(-2)
    between = cases * by_replicate.var(-1, ddof=1)
    across = num * by_case.var(-1, ddof=1)
    rest = array - by_replicate[..., :, None] - by_case[..., None, :] + mean[..., None, None]
    residual = (rest**2).sum((-2, -1)) / ((num - 1) * (cases - 1))
    parts = Components(
        np.maximum(0.0, between - residual) / cases, np.maximum(0.0, across - residual) / num, residual
    )
    return Estimate(mean, *_variance(between, across, residual, num, cases), num, cases, parts)


def _variance(
    between: np.ndarray, across: np.ndarray, residual: np.ndarray, num: int, cases: int
) -> tuple[np.ndarray, np.ndarray]:
    """Variance of the mean and its degrees of freedom, from the mean squares."""
    if num < MIN_REPLICATES_FOR_TEST:  # for more replicates, tests would be conservative
        between = np.maximum(between, residual)
    total = between + np.maximum(0.0, across - residual)
    counted = across > residual
    squares = between**2 / (num - 1) + np.where(
        counted, across**2 / (cases - 1) + residual**2 / ((num - 1) * (cases - 1)), 0.0
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        df = np.where(squares > 0, total**2 / squares, num - 1.0)
    # If replicates hardly vary and cases vary no more than the residual, the difference of mean squares and
    # hence Satterthwaite's df go to 0. Below the df of either factor, intervals would become infinite.
    return total / (num * cases), np.maximum(df, min(num, cases) - 1.0)


def expected(components: Components, num_replicates: int, num_cases: int | None) -> Estimate:
    """The expected estimate for a true mean of 0 at this size, given the variance components of a pilot."""
    parts = components
    if num_cases is None or num_cases == 1 or num_replicates == 1:
        spread = parts.replicate + (0.0 if num_cases is None else parts.residual / num_cases)
        df = np.full_like(spread, num_replicates - 1 if num_replicates > 1 else np.nan)
        return Estimate(np.zeros_like(spread), spread / num_replicates, df, num_replicates, None, parts)
    between = num_cases * parts.replicate + parts.residual
    across = num_replicates * parts.case + parts.residual
    variance, df = _variance(between, across, parts.residual, num_replicates, num_cases)
    return Estimate(np.zeros_like(between), variance, df, num_replicates, num_cases, parts)
