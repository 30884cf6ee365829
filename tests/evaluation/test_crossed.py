"""The two-way estimate against manual values, scipy, statsmodels and a thousand simulated comparisons."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from medcl3d.evaluation.statistics.coverage import MEASURED, covered
from medcl3d.evaluation.statistics.crossed import (
    Components,
    expected,
    over_replicates,
    over_replicates_and_cases,
)
from medcl3d.evaluation.statistics.intervals import MIN_REPLICATES_FOR_TEST, holm, wilcoxon_exact
from medcl3d.evaluation.statistics.power import smallest_difference
from tests.evaluation.coverage import NUM_CASES, coverage, measure, simulated, table, table_of_cases

PAGE = Path(__file__).parents[2] / "docs" / "concepts" / "statistics.md"
REPETITIONS = 1000
SPREAD = (0.5, 0.8, 1.0)


def comparisons(
    mean: float = 0.0, seed: int = 0, num: int = REPETITIONS, replicates: int = 10, spread=SPREAD
) -> np.ndarray:
    return simulated(num, replicates, NUM_CASES, spread, np.random.default_rng(seed), mean)


def test_by_hand():
    """Rows 1 2 3 and 3 6 9: mean 4, MS of rows 24, of columns 8, of the rest 2; variance (24 + 8 - 2) / 6."""
    found = over_replicates_and_cases([[1, 2, 3], [3, 6, 9]])
    assert found.mean == 4
    assert found.variance == pytest.approx(30 / 6)
    parts = found.components
    assert (parts.replicate, parts.case, parts.residual) == pytest.approx((22 / 3, 6 / 2, 2))
    assert found.df == pytest.approx(30**2 / (24**2 / 1 + 8**2 / 2 + 2**2 / 2))
    half = stats.t.ppf(0.975, found.df) * np.sqrt(5)
    interval = found.interval()
    assert (interval.low, interval.high, interval.n) == pytest.approx((4 - half, 4 + half, 2))
    assert found.p_value() == pytest.approx(2 * stats.t.sf(4 / np.sqrt(5), found.df))


def test_mean_squares_against_statsmodels():
    import pandas as pd
    import statsmodels.formula.api as smf
    from statsmodels.stats.anova import anova_lm

    values = comparisons(num=1, replicates=6)[0]
    rows, columns = np.indices(values.shape)
    frame = pd.DataFrame({"d": values.ravel(), "replicate": rows.ravel(), "case": columns.ravel()})
    squares = anova_lm(smf.ols("d ~ C(replicate) + C(case)", frame).fit())["mean_sq"].to_numpy()
    found = over_replicates_and_cases(values)
    assert found.variance == pytest.approx((squares[0] + max(0, squares[1] - squares[2])) / values.size)
    assert found.components.residual == pytest.approx(squares[2])


def test_over_replicates_against_scipy():
    values = np.random.default_rng(1).normal(0.3, 1, 9)
    found = over_replicates(values)
    reference = stats.ttest_1samp(values, 0)
    assert found.p_value() == pytest.approx(reference.pvalue)
    limits = reference.confidence_interval(0.9)
    assert (found.interval(0.9).low, found.interval(0.9).high) == pytest.approx((limits.low, limits.high))
    assert found.num_cases is None


def test_the_variance_is_at_least_that_over_replicates():
    values = comparisons(spread=(1.0, 0.0, 1.0))
    assert (
        over_replicates_and_cases(values).variance >= over_replicates(values.mean(-1)).variance * (1 - 1e-12)
    ).all()


def test_intervals_are_finite_if_replicates_agree() -> None:
    """Two replicates with equal means, cases that vary as the residual: Satterthwaite's df is almost 0."""
    rest = np.random.default_rng(0).normal(size=(500, 2, 20))
    estimate = over_replicates_and_cases(0.01 + rest - rest.mean(-1, keepdims=True))
    low, high = estimate.limits()
    assert (estimate.df >= 1).all()
    assert (high - low <= 2 * stats.t.ppf(0.975, 1) * estimate.error + 1e-12).all()


@pytest.mark.parametrize(
    ("spread", "unfloored", "floored"), [((1.0, 0.2, 1.0), 0.4, 0.75), ((0.2, 1.0, 1.0), 0.86, 0.92)]
)
def test_few_replicates_that_agree_by_chance_do_not_shorten_intervals(
    spread, unfloored: float, floored: float
) -> None:
    """Two replicates, mean square below a tenth of the residual's: the lower bound restores coverage."""
    values = comparisons(num=20_000, replicates=2, spread=spread)
    by_replicate, by_case = values.mean(-1), values.mean(-2)
    rest = values - by_replicate[..., None] - by_case[:, None] + values.mean((-2, -1))[:, None, None]
    residual = (rest**2).sum((-2, -1)) / (NUM_CASES - 1)
    between, across = NUM_CASES * by_replicate.var(-1, ddof=1), 2 * by_case.var(-1, ddof=1)
    agree = between < residual / 10
    assert agree.sum() > 300
    total = between + np.maximum(0, across - residual)
    df = total**2 / (between**2 + np.where(across > residual, across**2 + residual**2, 0) / (NUM_CASES - 1))
    half = stats.t.ppf(0.975, np.maximum(df, 1)) * np.sqrt(total / (2 * NUM_CASES))
    assert (np.abs(values.mean((-2, -1))) <= half)[agree].mean() < unfloored
    assert coverage(over_replicates_and_cases(values[agree])) > floored


def test_one_replicate_or_one_case():
    assert not over_replicates_and_cases(np.ones((1, 5))).interval().known
    single = over_replicates_and_cases([[1.0], [2.0], [4.0]])
    assert single.num_cases is None
    assert single.variance == over_replicates([1, 2, 4]).variance


def test_p_values_without_variance():
    assert over_replicates_and_cases(np.zeros((6, 4))).p_value() == 1
    equal = over_replicates_and_cases(np.full((6, 4), 0.1) + np.array([0.2] * 4) - 0.2)
    assert equal.p_value() == 0
    assert equal.interval().low == pytest.approx(0.1)


@pytest.mark.parametrize("values", [[[0.1, np.nan]], [], [1.0, 2.0]])
def test_incomplete_tables_are_refused(values):
    with pytest.raises(ValueError, match="needed"):
        over_replicates_and_cases(values)


def test_components_are_estimated_and_extrapolated_to_other_sizes():
    """Components are unbiased (except for the lower bound), and predict the errors of 20 x 80."""
    found = over_replicates_and_cases(comparisons())
    parts = found.components
    for got, sd in zip((parts.replicate, parts.case, parts.residual), SPREAD, strict=True):
        assert got.mean() == pytest.approx(sd**2, rel=0.05)
    plan = expected(parts, 20, 80)
    assert plan.variance.mean() == pytest.approx(0.25 / 20 + 0.64 / 80 + 1 / 1600, rel=0.05)
    same = expected(parts, 10, NUM_CASES)
    above = (parts.replicate > 0) & (parts.case > 0)
    assert above.mean() > 0.9
    assert same.variance[above] == pytest.approx(found.variance[above])
    assert same.df[above] == pytest.approx(found.df[above])


@pytest.mark.parametrize("spread", [SPREAD, (1.0, 0.2, 1.0), (0.2, 1.0, 1.0), (1.0, 1.0, 0.3)])
def test_intervals_cover_and_the_test_keeps_its_level(spread):
    found = over_replicates_and_cases(comparisons(mean=0.7, spread=spread))
    assert 0.93 <= coverage(found, 0.7) <= 0.97
    null = over_replicates_and_cases(comparisons(seed=1, spread=spread))
    assert 0.03 <= (null.p_value() < 0.05).mean() <= 0.07


def test_pooled_cases_reject_far_too_often():
    """400 differences analysed as if they were independent: the error that the two-way variance avoids."""
    values = comparisons()
    pooled = over_replicates(values.reshape(REPETITIONS, -1))
    assert (pooled.p_value() < 0.05).mean() > 0.4
    assert coverage(pooled) < 0.6


def test_stopping_at_a_small_p_rejects_too_often():
    """Why tests wait for all planned replicates; docs/concepts/statistics.md quotes the fraction."""
    d = simulated(4000, 10, 40, (1, 1, 1), np.random.default_rng(0))
    p = np.array([over_replicates_and_cases(d[:, :seen]).p_value() for seen in range(6, 11)])
    assert 0.09 < (p < 0.05).any(0).mean() < 0.13
    assert 0.04 < (p[-1] < 0.05).mean() < 0.06


def test_intervals_over_replicates_do_not_apply_to_other_cases():
    values = comparisons(spread=(0.2, 1.0, 1.0))
    assert coverage(over_replicates(values.mean(-1))) < 0.75


def test_holm_controls_the_familywise_error(monkeypatch):
    """Four arms and one reference: at most 5% (and noise) of a thousand null families have a rejection."""
    monkeypatch.setattr("gc.collect", lambda: 0)  # statsmodels calls it for every family, 0.1 s each
    rng = np.random.default_rng(5)
    reference = simulated(REPETITIONS, 10, NUM_CASES, SPREAD, rng)
    arms = [simulated(REPETITIONS, 10, NUM_CASES, SPREAD, rng) - reference for _ in range(4)]
    p = np.stack([over_replicates_and_cases(arm).p_value() for arm in arms], -1)
    assert 0.02 < (np.stack([holm(row) for row in p]) < 0.05).any(-1).mean() < 0.065
    assert (p < 0.05).any(-1).mean() > 0.09


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 3])
def test_a_simulated_difference_is_detected_with_the_nominal_power(alpha):
    """The smallest difference is computed from the true components."""
    truth = Components(*(np.float64(sd**2) for sd in SPREAD))
    planted = smallest_difference(expected(truth, 10, NUM_CASES), alpha)
    found = over_replicates_and_cases(comparisons(planted, seed=3)).p_value() < alpha
    assert 0.76 < found.mean() < 0.84


def test_wilcoxon_agrees_if_replicates_vary_most():
    """If cases hardly differ, both tests keep their level and reject the same comparisons."""
    values = comparisons(mean=1.0, spread=(1.0, 0.1, 1.0), num=300)
    t = over_replicates_and_cases(values).p_value() < 0.05
    w = np.array([wilcoxon_exact(row, np.zeros(10)) < 0.05 for row in values.mean(-1)])
    assert (t == w).mean() > 0.9


def test_the_coverage_quoted_in_reports_is_reproduced():
    for (num, cases), quoted in MEASURED.items():
        found = measure(num, cases)
        assert (round(min(found), 1), round(max(found), 1)) == quoted
    assert covered(1, 40) is None and covered(10, 1) is None
    assert covered(8, 60) == (6, 40, *MEASURED[6, 40])
    assert covered(25, 4) == (10, 2, *MEASURED[10, 2])
    assert (
        min(
            low for (num, cases), (low, _) in MEASURED.items() if num >= MIN_REPLICATES_FOR_TEST and cases > 2
        )
        > 93
    )


def test_the_page_has_the_tables():
    page = PAGE.read_text()
    assert table() in page and table_of_cases() in page
