"""Outlying replicates of an arm are flagged; normal replicates rarely are."""

from __future__ import annotations

import numpy as np
import pytest

from medcl3d.evaluation.statistics.outliers import MIN_REPLICATES, deviations, far, limit
from tests.evaluation.coverage import rejected, table_of_collapses
from tests.evaluation.test_crossed import PAGE

REAL = [0.77, 0.753, 0.773, 0.741, 0.776, 0.787, 0.696, 0.356, 0.772, 0.71]
"""Dice of scratch with 2 labels and 100 steps in docs/results/hippocampus_confirm.csv."""


def test_a_collapsed_run_is_flagged_and_the_others_are_not() -> None:
    assert far(REAL).tolist() == [k == 7 for k in range(10)]
    median = np.median(REAL)
    assert deviations(REAL)[7] == pytest.approx(
        (median - 0.356) / (1.4826 * np.median(np.abs(np.array(REAL) - median)))
    )


def test_two_collapsed_runs_of_ten_are_both_flagged() -> None:
    values = np.array(REAL)
    values[2] = 0.36
    assert np.flatnonzero(far(values)).tolist() == [2, 7]


@pytest.mark.parametrize("num", [4, 5, 6, 7, 8, 10, 15, 20])
def test_arms_of_normal_replicates_are_rarely_flagged(num: int) -> None:
    """docs/concepts/statistics.md quotes 0.7 to 2.5% of arms; a mean of 0 makes the lower bound idle."""
    values = np.random.default_rng(num).normal(size=(20_000, num))
    assert 0.005 < far(values).any(-1).mean() < 0.028


@pytest.mark.parametrize(("num", "share"), [(6, 0.8), (8, 0.95), (10, 0.99)])
def test_a_collapse_of_twenty_deviations_is_flagged(num: int, share: float) -> None:
    values = np.random.default_rng(num).normal(size=(2000, num))
    values[:, 0] -= 20
    assert far(values)[:, 0].mean() > share


def test_the_deviation_of_nearly_equal_values_has_a_lower_bound() -> None:
    """One deviation is at least a hundredth of the median."""
    values = [0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.66]
    assert deviations(values)[-1] == pytest.approx(0.04 / 0.007)
    assert not far(values).any() and far([*values[:-1], 0.64]).sum() == 1
    assert not far([0.0] * 6).any()


def test_three_replicates_are_not_flagged() -> None:
    assert not far([0.7, 0.71, 0.1]).any() and MIN_REPLICATES == 4
    assert (limit(4), limit(10), limit(30)) == (17.5, 7, 5)


def test_collapses_cause_one_sided_rejections() -> None:
    better, worse = rejected(10, 5.0)
    assert 8 < better < 12 and worse < 1
    assert sum(rejected(10, 0.0)) == pytest.approx(5, abs=0.5)


def test_the_page_has_the_table() -> None:
    assert table_of_collapses() in PAGE.read_text()
