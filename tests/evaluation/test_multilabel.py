"""Measures of findings against scikit-learn, and the treatment of unknown findings."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn import metrics as peer

from medcl3d.evaluation.metrics.multilabel import brier, calibration_error, finding_metrics

NAMES = ("effusion", "nodule", "fracture")


def drawn(seed: int, n: int = 80) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    truth = (rng.uniform(size=(n, 3)) < [0.5, 0.3, 0.15]).astype(float)
    scores = (rng.normal(size=truth.shape) + 1.5 * truth).round(1)  # rounded: ties
    return 1 / (1 + np.exp(0.5 - scores)), truth, [f"p{i // 2}" for i in range(n)]


@pytest.mark.parametrize("seed", range(3))
def test_areas_and_accuracy_as_scikit_learn(seed: int) -> None:
    probabilities, truth, patients = drawn(seed)
    found = finding_metrics(probabilities, truth, NAMES, patients, 0)
    assert found["auroc"].mean == pytest.approx(peer.roc_auc_score(truth, probabilities, average="macro"))
    assert found["average_precision"].mean == pytest.approx(
        peer.average_precision_score(truth, probabilities, average="macro")
    )
    each = [peer.balanced_accuracy_score(truth[:, k], probabilities[:, k] > 0.5) for k in range(3)]
    assert found["balanced_accuracy"].mean == pytest.approx(np.mean(each))
    assert found["brier"].mean == pytest.approx(
        np.mean([peer.brier_score_loss(truth[:, k], probabilities[:, k]) for k in range(3)])
    )
    for k, name in enumerate(NAMES):
        assert found[f"auroc/{name}"].mean == pytest.approx(
            peer.roc_auc_score(truth[:, k], probabilities[:, k])
        )
        assert found[f"average_precision/{name}"].mean == pytest.approx(
            peer.average_precision_score(truth[:, k], probabilities[:, k])
        )
        assert found[f"balanced_accuracy/{name}"].mean == pytest.approx(each[k])
        assert found[f"brier/{name}"].mean == pytest.approx(
            peer.brier_score_loss(truth[:, k], probabilities[:, k])
        )
    assert all(
        one.n == 40 and one.low < one.mean < one.high
        for name, one in found.items()
        if not name.startswith("calibration")
    )


def test_unknown_findings_are_ignored() -> None:
    probabilities, truth, patients = drawn(0)
    unknown = np.random.default_rng(1).uniform(size=truth.shape) < 0.3
    partly = np.where(unknown, np.nan, truth)
    found = finding_metrics(probabilities, partly, NAMES, patients, 0)
    for k, name in enumerate(NAMES):
        rows = ~unknown[:, k]
        alone = finding_metrics(
            probabilities[rows, k : k + 1],
            truth[rows, k : k + 1],
            [name],
            [patients[i] for i in np.flatnonzero(rows)],
            0,
        )
        for measure in ("auroc", "brier", "calibration_error"):
            assert found[f"{measure}/{name}"].mean == pytest.approx(alone[measure].mean)
    scrambled = np.where(unknown, 1 - probabilities, probabilities)
    assert finding_metrics(scrambled, partly, NAMES, patients, 0) == found


def test_a_constant_finding_is_excluded_from_areas() -> None:
    probabilities, truth, patients = drawn(0)
    truth[:, 2] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = finding_metrics(probabilities, truth, NAMES, patients, 0)
    assert (
        "auroc/fracture" not in found
        and "balanced_accuracy/fracture" not in found
        and "brier/fracture" in found
    )
    assert found["auroc"].mean == pytest.approx(
        (found["auroc/effusion"].mean + found["auroc/nodule"].mean) / 2
    )
    truth[:] = 1
    assert set(finding_metrics(probabilities, truth, NAMES, patients, 0)) == {
        f"{measure}{name}"
        for measure in ("brier", "calibration_error")
        for name in ("", *(f"/{finding}" for finding in NAMES))
    }


def test_calibration_is_of_the_finding_not_of_the_more_probable_class() -> None:
    """One in ten has it: 0.1 is calibrated, 0 has an error of 0.1, and 1, in the last bin, of 0.9."""
    present = np.array([True] + [False] * 9)
    assert calibration_error(np.full(10, 0.1), present) == pytest.approx(0)
    assert calibration_error(np.zeros(10), present) == pytest.approx(0.1)
    assert calibration_error(np.ones(10), present) == pytest.approx(0.9)
    assert brier(np.full(10, 0.1), present) == pytest.approx(0.09)
    rng = np.random.default_rng(0)
    p = rng.uniform(size=20000)
    seen = rng.uniform(size=len(p)) < p
    bins = np.minimum((p * 10).astype(int), 9)
    by_hand = sum((bins == b).mean() * abs(seen[bins == b].mean() - p[bins == b].mean()) for b in range(10))
    assert calibration_error(p, seen) == pytest.approx(by_hand) and by_hand < 0.02
