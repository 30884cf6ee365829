"""Label-free scores follow their definitions, on features with known scores."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medcl3d.evaluation.metrics.label_free import BETTER, alignment, alpha_req, label_free, rankme, uniformity


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_alignment_is_the_mean_squared_distance_of_partners() -> None:
    first, second = np.eye(3), np.eye(3)[[0, 2, 1]]
    assert alignment(first, first) == 0
    assert alignment(first, second) == pytest.approx((0 + 2 + 2) / 3)


def test_uniformity_excludes_pairs_of_a_vector_with_itself() -> None:
    assert uniformity(np.ones((5, 1))) == 0
    assert uniformity(np.array([[1.0, 0], [-1, 0]])) == pytest.approx(-8)
    z = unit(np.random.default_rng(0).normal(size=(7, 4)))
    slow = [
        math.exp(-2 * float(((a - b) ** 2).sum())) for i, a in enumerate(z) for j, b in enumerate(z) if i != j
    ]
    assert uniformity(z) == pytest.approx(math.log(np.mean(slow)))


def test_rankme_counts_equally_used_directions() -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(40, 5)))[0]
    assert rankme(basis) == pytest.approx(5, abs=1e-3)
    assert rankme(np.outer(rng.normal(size=40), np.ones(6))) == pytest.approx(1, abs=1e-3)
    assert rankme(7 * basis) == pytest.approx(rankme(basis)), "independent of the length of features"


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_req_finds_a_power_law(alpha: float) -> None:
    rng = np.random.default_rng(1)
    centred = rng.normal(size=(200, 20))
    centred = np.linalg.qr(centred - centred.mean(0))[0]
    features = centred * np.arange(1, 21) ** (-alpha / 2) + 3.0
    assert alpha_req(features) == pytest.approx(alpha)


def collapsed(where: str) -> np.ndarray:
    if where == "rounding":
        return (0.1 * (1 + 1e-7 * np.random.default_rng(0).normal(size=(256, 32)))).astype(np.float32)
    return np.full((256, 32), float(where), dtype=np.float32)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("where", ["0", "1e-20", "0.1", "-1e4", "rounding"])
def test_collapsed_features_have_the_worst_scores_and_no_slope(where: str) -> None:
    """All 0 is as collapsed as all 1; distances that assume unit vectors would make it uniform."""
    x = collapsed(where)
    assert math.isnan(alpha_req(x))
    found = label_free(x, x)
    assert set(found) == {"alignment", "uniformity", "rankme"}
    assert (
        found["alignment"] == 0
        and found["uniformity"] == pytest.approx(0, abs=1e-9)
        and found["rankme"] == pytest.approx(1, abs=1e-2)
    )


def test_zero_features_are_equal_to_each_other_and_differ_from_others() -> None:
    z = np.array([[1.0, 0], [0, 0], [0, 0]])
    assert uniformity(z) == pytest.approx(math.log((2 * math.exp(-2) + 1) / 3))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_features_have_no_scores(value: float) -> None:
    good = np.random.default_rng(0).normal(size=(30, 8))
    for bad in (np.full_like(good, value), np.where(np.arange(30)[:, None] == 7, value, good)):
        assert label_free(bad, good) == label_free(good, bad) == {}


@pytest.mark.filterwarnings("error")
def test_one_crop_has_no_pairs() -> None:
    assert set(label_free(np.ones((1, 4)), np.ones((1, 4)))) == {"alignment", "rankme"}


def test_all_scores_are_returned() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(30, 8)).astype(np.float32)
    found = label_free(first, first)
    assert set(found) == set(BETTER) and found["alignment"] == 0
    assert label_free(first, rng.normal(size=first.shape))["alignment"] > 1
