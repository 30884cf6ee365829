"""Power against statsmodels, the effect size against its definition, label efficiency by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from medcl3d.evaluation.crossed import over_replicates
from medcl3d.evaluation.labels import labels_needed
from medcl3d.evaluation.power import effect_size, power, smallest_difference


@pytest.mark.parametrize("num", [3, 6, 10, 30])
@pytest.mark.parametrize("alpha", [0.05, 0.0125])
def test_power_against_statsmodels(num, alpha):
    theirs = TTestPower()
    assert power(0.7, 1 / np.sqrt(num), num - 1, alpha) == pytest.approx(theirs.power(0.7, num, alpha), abs=1e-6)
    values = np.random.default_rng(0).normal(size=num)
    values = (values - values.mean()) / values.std(ddof=1)
    found = smallest_difference(over_replicates(values), alpha)
    assert theirs.power(found, num, alpha) == pytest.approx(0.8, abs=1e-6)


def test_the_smallest_difference_where_nothing_varies_or_is_known():
    assert smallest_difference(over_replicates([1.0, 1.0, 1.0])) == 0
    assert np.isnan(smallest_difference(over_replicates([1.0])))


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


def test_no_effect_size_without_spread():
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


def test_a_curve_that_falls_counts_where_it_is_first_reached():
    assert labels_needed({2: 0.5, 4: 0.7, 8: 0.6}, 0.65)[1] < 4
    assert labels_needed({2: 0.5, 4: 0.7, 8: 0.6}, 0.75) == ("more than", 8)
    assert labels_needed({2: 0.5}, 0.5) == ("at", 2)
    with pytest.raises(ValueError, match="no point"):
        labels_needed({}, 0.5)
