"""Measures of regression against scikit-learn, and intervals over patients."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as peer

from medcl3d.evaluation.metrics.regression import mean_absolute_error, r2, regression_metrics


def test_as_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    targets = rng.normal(50, 10, 40)
    predictions = targets + rng.normal(1, 4, 40)
    assert mean_absolute_error(predictions, targets) == pytest.approx(
        peer.mean_absolute_error(targets, predictions)
    )
    assert r2(predictions, targets) == pytest.approx(peer.r2_score(targets, predictions))
    assert r2(np.full(40, targets.mean()), targets) == pytest.approx(0)
    assert np.isnan(r2(predictions, np.ones(40)))


def test_intervals_are_over_patients() -> None:
    rng = np.random.default_rng(1)
    targets = np.repeat(rng.normal(50, 10, 20), 3)
    predictions = targets + np.repeat(rng.normal(0, 4, 20), 3)
    patients = [f"p{k // 3}" for k in range(60)]
    found = regression_metrics(predictions, targets, patients, 0)
    assert found["mae"].n == 20
    assert found["mae"].low < found["mae"].mean < found["mae"].high
    alone = regression_metrics(predictions, targets, [str(k) for k in range(60)], 0)
    assert found["mae"].high - found["mae"].low > 1.3 * (alone["mae"].high - alone["mae"].low)
    assert set(regression_metrics(predictions, np.ones(60), patients, 0)) == {"mae"}
