"""Scores without labels are what their papers say, on features whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medcl3d.evaluation.label_free import BETTER, alignment, alpha_req, label_free, rankme, uniformity


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_alignment_is_the_mean_squared_distance_of_partners() -> None:
    first, second = np.eye(3), np.eye(3)[[0, 2, 1]]
    assert alignment(first, first) == 0
    assert alignment(first, second) == pytest.approx((0 + 2 + 2) / 3)


def test_uniformity_leaves_out_a_vector_and_itself() -> None:
    assert uniformity(np.ones((5, 1))) == 0
    assert uniformity(np.array([[1.0, 0], [-1, 0]])) == pytest.approx(-8)
    z = unit(np.random.default_rng(0).normal(size=(7, 4)))
    slow = [math.exp(-2 * float(((a - b) ** 2).sum())) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]
    assert uniformity(z) == pytest.approx(math.log(np.mean(slow)))


def test_rankme_counts_directions_that_are_used_alike() -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(40, 5)))[0]
    assert rankme(basis) == pytest.approx(5, abs=1e-3)
    assert rankme(np.outer(rng.normal(size=40), np.ones(6))) == pytest.approx(1, abs=1e-3)
    assert rankme(7 * basis) == pytest.approx(rankme(basis)), "however long features are"


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_req_finds_a_power_law(alpha: float) -> None:
    rng = np.random.default_rng(1)
    centred = rng.normal(size=(200, 20))
    centred = np.linalg.qr(centred - centred.mean(0))[0]
    features = centred * np.arange(1, 21) ** (-alpha / 2) + 3.0
    assert alpha_req(features) == pytest.approx(alpha)


def test_features_that_collapsed_have_no_slope() -> None:
    assert math.isnan(alpha_req(np.ones((10, 4))))
    assert set(label_free(np.ones((10, 4)), np.ones((10, 4)))) == {"alignment", "uniformity", "rankme"}


def test_all_scores_come_together() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(30, 8)).astype(np.float32)
    found = label_free(first, first)
    assert set(found) == set(BETTER) and found["alignment"] == 0
    assert label_free(first, rng.normal(size=first.shape))["alignment"] > 1
