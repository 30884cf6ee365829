"""Statistics against scipy, brute force and manual values."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from medcl3d.evaluation.statistics.crossed import over_replicates
from medcl3d.evaluation.statistics.intervals import holm, wilcoxon_exact

RNG = np.random.default_rng(7)


def test_an_interval_by_hand():
    """1, 2, 3: mean 2, sd 1, t(0.975, 2) = 4.302653, half width 4.302653 / sqrt(3) = 2.484138."""
    interval = over_replicates([1, 2, 3]).interval()
    assert interval.n == 3
    assert (interval.mean, interval.low, interval.high) == pytest.approx((2, -0.484138, 4.484138), abs=1e-6)


def test_one_replicate_has_no_interval():
    interval = over_replicates([0.7]).interval()
    assert interval.mean == 0.7
    assert not interval.known
    assert not interval.excludes_zero


def test_equal_values_have_p_one():
    same = np.linspace(0, 1, 6)
    assert wilcoxon_exact(same, same) == 1


@pytest.mark.parametrize("n", [2, 6, 10, 15])
def test_wilcoxon_against_scipy_without_ties(n):
    a, b = RNG.normal(size=n), RNG.normal(0.5, 1, size=n)
    assert wilcoxon_exact(a, b) == pytest.approx(stats.wilcoxon(a, b, method="exact").pvalue)


def test_wilcoxon_by_hand():
    """Six differences of one sign: 2 of the 64 sign assignments are as extreme."""
    assert wilcoxon_exact([1, 2, 3, 4, 5, 6], np.zeros(6)) == pytest.approx(2 / 64)
    assert wilcoxon_exact(np.zeros(6), [1, 2, 3, 4, 5, 6]) == pytest.approx(2 / 64)


def test_wilcoxon_with_ties_is_exact():
    """Enumeration of all signs of the mid-ranks; 0 is dropped."""
    difference = np.array([0.1, 0.1, -0.2, 0.3, 0.3, -0.1, 0.0, 0.5])
    kept = difference[difference != 0]
    ranks = stats.rankdata(np.abs(kept))
    distance = abs(ranks[kept > 0].sum() - ranks.sum() / 2)
    sums = [ranks[np.array(signs)].sum() for signs in itertools.product([True, False], repeat=len(ranks))]
    expected = np.mean([abs(s - ranks.sum() / 2) >= distance - 1e-9 for s in sums])
    assert wilcoxon_exact(difference, np.zeros(8)) == pytest.approx(expected)


@pytest.mark.parametrize("n", [6, 9, 13])
def test_wilcoxon_against_scipy_with_ties(n):
    """scipy permutes signs up to n = 13 and approximates above; its "exact" ignores ties."""
    tied = np.array([1.0, 1, -1, 2, 2, 3, -2, 3, 1, 2, -3, 1, 0])[:n]
    assert wilcoxon_exact(tied, np.zeros(n)) == pytest.approx(stats.wilcoxon(tied).pvalue, rel=1e-12)
    longer = np.tile(tied, 2)
    assert abs(wilcoxon_exact(longer, 0 * longer) - stats.wilcoxon(longer, method="exact").pvalue) > 1e-3


def test_ties_survive_rounding():
    """0.3 - 0.2 and 0.2 - 0.1 differ by rounding and are tied."""
    exact = wilcoxon_exact([1, 1, -1, 2, 3, 4], np.zeros(6))
    assert wilcoxon_exact([0.3, 0.2, 0.1, 0.2, 0.3, 0.4], [0.2, 0.1, 0.2, 0, 0, 0]) == exact


@pytest.mark.parametrize("reference", [[1, 2], [1, 2, np.nan], [[1, 2, 3]]])
def test_wilcoxon_needs_pairs(reference):
    with pytest.raises(ValueError, match="paired finite values"):
        wilcoxon_exact([1, 2, 3], reference)


def test_holm_by_hand():
    """0.01, 0.04, 0.03, 0.005 -> 3 x 0.01, max(2 x 0.03, 0.04), 2 x 0.03, 4 x 0.005."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_against_its_definition():
    """Step-down rejection, smallest p first: the adjusted p is the alpha at which the rejection changes."""
    p = RNG.uniform(0, 0.05, size=7)
    adjusted = holm(p)
    for alpha in np.linspace(0.001, 0.3, 50):
        rejected = set()
        for k, i in enumerate(np.argsort(p)):
            if p[i] > alpha / (len(p) - k):
                break
            rejected.add(i)
        assert rejected == set(np.flatnonzero(adjusted <= alpha))


def test_holm_of_an_empty_family_is_empty():
    assert len(holm([])) == 0


def test_holm_refuses_nan():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        holm([0.1, np.nan])


def test_false_positives_at_the_nominal_rate():
    """In 2,000 null comparisons, the t-test has p < 0.05 in about 5%, Wilcoxon in at most 5%."""
    rng = np.random.default_rng(0)
    pairs = rng.normal(size=(2000, 2, 8))
    t = np.mean([over_replicates(a - b).p_value() < 0.05 for a, b in pairs])
    exact = np.mean([wilcoxon_exact(a, b) < 0.05 for a, b in pairs])
    assert 0.035 < t < 0.065
    assert 0.02 < exact < 0.055
