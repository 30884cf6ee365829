"""Measures of classification against scikit-learn, and intervals over patients."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn import metrics as peer

from medcl3d.evaluation.metrics.classification import (
    accuracy,
    auroc,
    average_precision,
    balanced_accuracy,
    brier,
    calibration_error,
    classification_metrics,
)


def drawn(num_classes: int, seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = rng.integers(num_classes, size=n)
    scores = rng.normal(size=(n, num_classes)).round(1) + np.eye(num_classes)[targets]  # rounded: ties
    return np.exp(scores) / np.exp(scores).sum(1, keepdims=True), targets


@pytest.mark.parametrize("seed", range(5))
def test_two_classes_as_scikit_learn(seed: int) -> None:
    probabilities, targets = drawn(2, seed)
    assert auroc(probabilities, targets) == pytest.approx(
        peer.roc_auc_score(targets, probabilities[:, 1]), abs=1e-12
    )
    assert balanced_accuracy(probabilities, targets) == pytest.approx(
        peer.balanced_accuracy_score(targets, probabilities.argmax(1))
    )
    assert accuracy(probabilities, targets) == pytest.approx(
        peer.accuracy_score(targets, probabilities.argmax(1))
    )


@pytest.mark.parametrize("seed", range(5))
def test_many_classes_as_scikit_learn(seed: int) -> None:
    probabilities, targets = drawn(5, seed)
    expected = peer.roc_auc_score(targets, probabilities, multi_class="ovr", average="macro")
    assert auroc(probabilities, targets) == pytest.approx(expected, abs=1e-12)
    assert balanced_accuracy(probabilities, targets) == pytest.approx(
        peer.balanced_accuracy_score(targets, probabilities.argmax(1))
    )


def test_an_absent_class_is_not_counted() -> None:
    probabilities, targets = drawn(4, 0)
    targets[targets == 3] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0 < auroc(probabilities, targets) < 1
    assert balanced_accuracy(probabilities, targets) == pytest.approx(
        np.mean([(probabilities.argmax(1) == k)[targets == k].mean() for k in range(3)])
    )


def test_one_class_has_no_area_but_an_accuracy() -> None:
    probabilities, _ = drawn(2, 0)
    found = classification_metrics(probabilities, np.zeros(60, dtype=int), [str(i) for i in range(60)], 0)
    assert set(found) == {"balanced_accuracy", "accuracy", "brier", "calibration_error"}


def test_the_interval_is_over_patients_not_crops() -> None:
    """Sixty items of six patients, each all right or all wrong, are as uncertain as six items."""
    targets = np.tile([0, 1], 30)
    right = np.repeat([1, 1, 1, 0, 0, 1], 10)
    probabilities = np.eye(2)[np.where(right, targets, 1 - targets)]
    of_crops = classification_metrics(probabilities, targets, [str(i) for i in range(60)], 0)["accuracy"]
    of_patients = classification_metrics(probabilities, targets, [str(i // 10) for i in range(60)], 0)[
        "accuracy"
    ]
    assert of_patients.mean == of_crops.mean == pytest.approx(2 / 3)
    assert of_patients.n == 6 and of_crops.n == 60
    assert of_patients.high - of_patients.low > 1.5 * (of_crops.high - of_crops.low)
    assert of_patients.low <= of_patients.mean <= of_patients.high
    assert classification_metrics(probabilities, targets, ["one"] * 60, 0)["accuracy"].known is False


@pytest.mark.parametrize("seed", range(3))
def test_precision_and_calibration_as_scikit_learn(seed: int) -> None:
    for num_classes in (2, 4):
        probabilities, targets = drawn(num_classes, seed)
        truth = np.eye(num_classes)[targets]
        classes = range(num_classes) if num_classes > 2 else (1,)
        expected = np.mean([peer.average_precision_score(truth[:, k], probabilities[:, k]) for k in classes])
        assert average_precision(probabilities, targets) == pytest.approx(expected, abs=1e-12)
        assert brier(probabilities, targets) == pytest.approx(((probabilities - truth) ** 2).sum(1).mean())
    probabilities, targets = drawn(2, seed)
    assert brier(probabilities, targets) == pytest.approx(
        2 * peer.brier_score_loss(targets, probabilities[:, 1])
    )


def test_calibration_error_by_hand() -> None:
    """Nine of ten correct at 0.9 is calibrated, all correct gives 0.1, all wrong 0.9."""
    sure = np.tile([0.1, 0.9], (10, 1))
    assert calibration_error(sure, np.array([0] + [1] * 9)) == pytest.approx(0)
    assert calibration_error(sure, np.ones(10, dtype=int)) == pytest.approx(0.1)
    assert calibration_error(sure, np.zeros(10, dtype=int)) == pytest.approx(0.9)
    assert calibration_error(np.array([[0.0, 1.0]]), np.array([0])) == 1


def test_true_probabilities_are_calibrated_and_overconfident_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(size=20000)
    targets = (rng.uniform(size=len(p)) < p).astype(int)
    assert calibration_error(np.stack([1 - p, p], 1), targets) < 0.01
    sharp = p**3 / (p**3 + (1 - p) ** 3)
    assert calibration_error(np.stack([1 - sharp, sharp], 1), targets) > 0.08
    assert brier(np.stack([1 - sharp, sharp], 1), targets) > brier(np.stack([1 - p, p], 1), targets)
