"""Power against statsmodels, effect sizes against definitions, label efficiency against manual values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from medcl3d.evaluation.statistics.crossed import (
    Components,
    expected,
    over_replicates,
    over_replicates_and_cases,
)
from medcl3d.evaluation.statistics.label_efficiency import labels_needed
from medcl3d.evaluation.statistics.power import (
    effect_size,
    power,
    smallest_difference,
    upper_limit_of_replicates,
)
from tests.evaluation.coverage import SPREADS, simulated


@pytest.mark.parametrize("num", [3, 6, 10, 30])
@pytest.mark.parametrize("alpha", [0.05, 0.0125])
def test_power_against_statsmodels(num, alpha):
    theirs = TTestPower()
    assert power(0.7, 1 / np.sqrt(num), num - 1, alpha) == pytest.approx(
        theirs.power(0.7, num, alpha), abs=1e-6
    )
    values = np.random.default_rng(0).normal(size=num)
    values = (values - values.mean()) / values.std(ddof=1)
    found = smallest_difference(over_replicates(values), alpha)
    assert theirs.power(found, num, alpha) == pytest.approx(0.8, abs=1e-6)


def test_the_smallest_difference_without_variance_or_with_one_replicate():
    assert smallest_difference(over_replicates([1.0, 1.0, 1.0])) == 0
    assert np.isnan(smallest_difference(over_replicates([1.0])))


PLANNED = 10
NUM_CASES = 40


DFS = np.array([9.0, 10, 11, 12, 14, 17, 22, 30, 50, 100, 400])
"""Degrees of freedom for interpolation of the smallest difference in standard errors."""


@pytest.fixture(scope="module")
def in_errors() -> np.ndarray:
    one = expected(Components(np.float64(PLANNED), np.float64(0), np.float64(0)), PLANNED, None)
    return np.array([smallest_difference(replace(one, df=df)) for df in DFS])


def real_power(
    pilot: int,
    num_cases: int | None,
    spread: tuple[float, float, float],
    cautious: bool,
    in_errors: np.ndarray,
    num: int = 4000,
) -> np.ndarray:
    """True power of ten replicates at the difference planned by each simulated pilot."""
    values = simulated(num, pilot, num_cases or 1, spread, np.random.default_rng([7, pilot]))
    means = values.mean(-1)
    parts = (over_replicates_and_cases(values) if num_cases else over_replicates(means)).components
    plan = expected(
        upper_limit_of_replicates(means, parts, num_cases) if cautious else parts, PLANNED, num_cases
    )
    planned = plan.error * np.interp(plan.df, DFS, in_errors)
    truth = expected(Components(*(np.float64(sd**2) for sd in spread)), PLANNED, num_cases)
    return power(planned, float(truth.error), float(truth.df))


@pytest.mark.parametrize("pilot", [2, 3, 5])
@pytest.mark.parametrize(
    "setting", ["replicates alone", "replicates vary", "both vary", "both vary, small residual"]
)
def test_a_planned_difference_has_the_nominal_power(pilot: int, setting: str, in_errors: np.ndarray) -> None:
    """With the upper limit of the variance, four of five pilots have enough power; with its estimate, few."""
    of = (None, (1.0, 0.0, 0.0)) if setting == "replicates alone" else (NUM_CASES, SPREADS[setting])
    cautious, plain = (real_power(pilot, *of, which, in_errors) for which in (True, False))
    assert 0.84 < cautious.mean() < 0.92
    assert 0.16 < (cautious < 0.8).mean() < 0.23
    assert plain.mean() < 0.74 and (plain < 0.8).mean() > 0.5


def test_the_upper_limit_by_hand() -> None:
    """1 and 3: variance 2, limit at one degree of freedom 2 / 0.0642, minus a residual of 4 over 8 cases."""
    parts = upper_limit_of_replicates([1.0, 3.0], Components(np.float64(2), np.float64(5), np.float64(4)), 8)
    assert (parts.replicate, parts.case, parts.residual) == pytest.approx(
        (2 / stats.chi2.ppf(0.2, 1) - 0.5, 5, 4)
    )


def test_effect_size_by_hand():
    """1, 2, 3, 4, 5: mean 3, sd sqrt(2.5), times Gamma(2) / (sqrt(2) Gamma(1.5)) = 0.797885."""
    found = effect_size([1, 2, 3, 4, 5])
    assert found.mean == pytest.approx(3 / np.sqrt(2.5) * 0.797885, rel=1e-6)
    t = 3 / np.sqrt(2.5) * np.sqrt(5)
    assert stats.nct.cdf(t, 4, found.low * np.sqrt(5)) == pytest.approx(0.975, abs=1e-6)
    assert stats.nct.cdf(t, 4, found.high * np.sqrt(5)) == pytest.approx(0.025, abs=1e-6)


def test_the_intervals_of_effect_sizes_cover():
    rng = np.random.default_rng(2)
    found = [effect_size(rng.normal(0.8, 1, 10)) for _ in range(300)]
    assert 0.92 < np.mean([interval.low <= 0.8 <= interval.high for interval in found]) < 0.98
    assert np.mean([interval.mean for interval in found]) == pytest.approx(0.8, abs=0.06)


def test_no_effect_size_without_variance():
    assert effect_size([0.1]) is None
    assert effect_size([0.1, 0.2]) is None
    assert effect_size([0.1, 0.1, 0.1]) is None
    assert not effect_size([0.1, 0.1 + 1e-6, 0.1 - 1e-6]).known


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (0.5, ("at", 2)),
        (0.6, ("at", 4)),
        (0.7, ("at", 8)),
        (0.4, ("fewer than", 2)),
        (0.8, ("more than", 8)),
    ],
)
def test_labels_needed_by_hand(value, found):
    """Halfway in the metric is halfway in the logarithm: 4 between 2 and 8."""
    word, number = labels_needed({8: 0.7, 2: 0.5}, value)
    assert (word, number) == (found[0], pytest.approx(found[1]))
    word, number = labels_needed({8: -0.7, 2: -0.5}, -value, higher=False)
    assert (word, number) == (found[0], pytest.approx(found[1]))


def test_a_non_monotone_curve_gives_the_smallest_number():
    assert labels_needed({2: 0.5, 4: 0.7, 8: 0.6}, 0.65)[1] < 4
    assert labels_needed({2: 0.5, 4: 0.7, 8: 0.6}, 0.75) == ("more than", 8)
    assert labels_needed({2: 0.5}, 0.5) == ("at", 2)
    with pytest.raises(ValueError, match="no points"):
        labels_needed({}, 0.5)
