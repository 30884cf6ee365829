"""Two one-sided tests against statsmodels, and their level and power in simulated comparisons."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.weightstats import ttost_paired

from medcl3d.evaluation.statistics.crossed import over_replicates, over_replicates_and_cases
from medcl3d.evaluation.statistics.intervals import holm
from tests.evaluation.coverage import simulated

SPREAD = (0.5, 0.8, 1.0)


def test_against_statsmodels() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.8, 0.02, 8), rng.normal(0.8, 0.02, 8)
    expected = ttost_paired(first, second, -0.02, 0.02)[0]
    assert over_replicates(first - second).equivalence_p(0.02) == pytest.approx(expected)


def test_the_90_percent_interval_is_inside_the_margin_if_p_is_small() -> None:
    found = over_replicates(np.random.default_rng(1).normal(0.2, 1, (500, 10)))
    low, high = found.limits(0.9)
    inside = (low > -1) & (high < 1)
    assert 0.1 < inside.mean() < 0.9
    assert ((found.equivalence_p(1.0) < 0.05) == inside).all()


@pytest.mark.parametrize("edge", [-1.0, 1.0])
@pytest.mark.parametrize("replicates", [6, 10])
def test_the_level_at_the_edge_of_the_margin(edge: float, replicates: int) -> None:
    """At most 5% (and noise) of comparisons whose true difference is the margin are declared equivalent."""
    values = simulated(3000, replicates, 40, SPREAD, np.random.default_rng(2), edge)
    assert 0.02 < (over_replicates_and_cases(values).equivalence_p(1.0) < 0.05).mean() < 0.062


def test_the_power_at_a_difference_of_zero() -> None:
    values = simulated(1000, 10, 40, SPREAD, np.random.default_rng(3))
    assert (over_replicates_and_cases(values).equivalence_p(1.0) < 0.05).mean() > 0.97
    assert (over_replicates_and_cases(values).equivalence_p(0.2) < 0.05).mean() < 0.05


def test_a_family_at_the_edge_has_at_most_one_error_in_twenty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gc.collect", lambda: 0)  # statsmodels calls it for every family, 0.1 s each
    rng = np.random.default_rng(4)
    reference = simulated(1500, 10, 20, SPREAD, rng)
    arms = [simulated(1500, 10, 20, SPREAD, rng, 1.0) - reference for _ in range(4)]
    p = np.stack([over_replicates_and_cases(arm).equivalence_p(1.0) for arm in arms], -1)
    assert (np.stack([holm(row) for row in p]) < 0.05).any(-1).mean() < 0.06


def test_p_values_without_variance() -> None:
    assert over_replicates([0.1, 0.1, 0.1]).equivalence_p(0.2) == 0
    assert over_replicates([0.3, 0.3, 0.3]).equivalence_p(0.2) == 1
    assert np.isnan(over_replicates([0.1]).equivalence_p(0.2))
