"""Measures of retrieval follow their definitions; with ties they are the mean over all orders."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from medcl3d.evaluation.metrics.retrieval import TIE, measures

NAMES = ("recall@1", "recall@5", "reciprocal_rank", "average_precision")


def by_definition(ordered: np.ndarray) -> dict[str, float]:
    """The measures of ordered matches ``Bool[n]``."""
    ranks = np.flatnonzero(ordered) + 1
    precision = np.arange(1, len(ranks) + 1) / ranks
    return dict(
        zip(
            NAMES,
            (float(ranks[0] <= 1), float(ranks[0] <= 5), float(1 / ranks[0]), float(precision.mean())),
            strict=True,
        )
    )


def mean_over_orders(similarity: np.ndarray, matches: np.ndarray) -> dict[str, float]:
    """The mean over all permutations that are sorted by similarity."""
    orders = [
        by_definition(matches[list(p)])
        for p in itertools.permutations(range(len(matches)))
        if (np.diff(similarity[list(p)]) <= 0).all()
    ]
    return {name: float(np.mean([order[name] for order in orders])) for name in NAMES}


@pytest.mark.parametrize("seed", range(20))
def test_without_ties_measures_equal_their_definitions_bitwise(seed: int) -> None:
    rng = np.random.default_rng(seed)
    similarity, matches = rng.uniform(-1, 1, 60), rng.random(60) < rng.uniform(0.05, 0.9)
    matches[rng.integers(60)] = True
    found = measures(similarity, matches)
    assert {name: found[name] for name in NAMES} == by_definition(matches[np.argsort(-similarity)])


@pytest.mark.parametrize(("n", "m"), [(5, 1), (6, 2), (5, 4), (7, 3)])
def test_chance_is_the_mean_over_all_orders(n: int, m: int) -> None:
    orders = [by_definition(np.isin(np.arange(n), places)) for places in itertools.combinations(range(n), m)]
    found = measures(np.arange(n) / n, np.arange(n) < m)
    for name in NAMES:
        assert found[f"chance_{name}"] == pytest.approx(np.mean([order[name] for order in orders]), abs=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_measures_with_ties_are_the_mean_over_all_orders(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(4, 8))
    similarity, matches = rng.integers(0, rng.integers(1, 4), n) / 4, rng.random(n) < 0.5
    matches[rng.integers(n)] = True
    expected = mean_over_orders(similarity, matches)
    found = measures(similarity, matches)
    for name in NAMES:
        assert found[name] == pytest.approx(expected[name], abs=1e-12)


@pytest.mark.parametrize("matches", [np.arange(30) < 12, np.arange(30) >= 12, np.arange(30) == 3])
def test_equal_similarities_give_chance_for_any_order_of_the_table(matches: np.ndarray) -> None:
    rounding = np.random.default_rng(0).uniform(-TIE, TIE, 30) / 60
    for similarity in (np.zeros(30), 0.3 + rounding):
        found = measures(similarity, matches)
        for name in NAMES:
            assert found[name] == pytest.approx(found[f"chance_{name}"], abs=1e-12)
