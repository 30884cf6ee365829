"""Probability of being best, and ranks under resampling."""

from __future__ import annotations

import numpy as np
import pytest

from medcl3d.evaluation.statistics.rank_stability import rank_stability
from medcl3d.evaluation.statistics.ranks import normalised


def arms(num: int, replicates: int, rng: np.random.Generator, gains=0.0, cases: int = 20) -> np.ndarray:
    """Values with separate replicates, cases and residuals per arm."""
    shape = (num, replicates, cases)
    values = rng.normal(size=shape) + rng.normal(size=(num, replicates, 1)) + rng.normal(size=(num, 1, cases))
    return values + np.reshape(np.broadcast_to(gains, num), (num, 1, 1))


@pytest.mark.parametrize("replicates", [3, 6, 10])
def test_equal_arms_are_best_equally_often(replicates: int) -> None:
    """docs/concepts/statistics.md quotes how often one of five equal arms is best in over 95% of draws."""
    rng = np.random.default_rng(replicates)
    best = np.array(
        [rank_stability(arms(5, replicates, rng), resamples=300, seed=k).best for k in range(300)]
    )
    assert best.sum(1) == pytest.approx(1)
    assert best.mean(0) == pytest.approx(0.2, abs=0.06)
    assert (best.max(1) > 0.95).mean() < 0.08


def test_a_clear_order_is_stable_in_both_directions() -> None:
    values = arms(4, 10, np.random.default_rng(0), [0, 10, 20, 30])
    found = rank_stability(values)
    assert (found.best, found.rank) == ((0, 0, 0, 1), (4, 3, 2, 1)) and found.low == found.high == found.rank
    assert rank_stability(values, higher=False).best == (1, 0, 0, 0)


def test_arms_are_paired() -> None:
    """Variation common to all arms does not change their ranks; nor does rounding."""
    shared = np.random.default_rng(1).normal(0, 50, (1, 6, 10))
    found = rank_stability(shared + np.array([0.0, 0.01, 0.01])[:, None, None])
    assert found.best == pytest.approx((0, 0.5, 0.5)) and found.rank == pytest.approx((3, 1.5, 1.5))


def test_cases_are_resampled() -> None:
    """One case decides between two arms with equal replicates: ranks are uncertain if cases are resampled."""
    values = np.zeros((2, 10, 5))
    values[0, :, 0] = 1.0
    assert rank_stability(values.mean(-1)).best == (1, 0)
    # The case is in a resample of five with probability 1 - 0.8^5; otherwise the arms are tied.
    assert rank_stability(values).best[0] == pytest.approx(1 - 0.8**5 / 2, abs=0.03)


def test_too_few_replicates_or_arms_give_none_and_results_depend_on_the_seed() -> None:
    values = arms(3, 6, np.random.default_rng(2))
    assert rank_stability(values[:, :2]) is None and rank_stability(values[:1]) is None
    assert rank_stability(values, seed=5) == rank_stability(values, seed=5)


def test_scores_between_anchors() -> None:
    assert normalised({"a": 0.6, "b": 0.4}, 0.5, 0.9) == pytest.approx({"a": 0.25, "b": -0.25})
    assert normalised({"a": 4.0}, 5.0, 3.0, higher=False) == pytest.approx({"a": 0.5})
    assert normalised({"a": 4.0}, 5.0, 3.0) is None and normalised({"a": 4.0}, 5.0, 5.0) is None
