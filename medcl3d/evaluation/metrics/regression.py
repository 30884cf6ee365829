"""Measures of regression, with intervals over test patients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn import metrics

from medcl3d.evaluation.statistics.bootstrap import Measure, over_drawn_patients
from medcl3d.evaluation.statistics.intervals import Interval


def mean_absolute_error(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Mean absolute error, in the unit of the target."""
    return float(metrics.mean_absolute_error(targets, predictions))


def r2(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Explained fraction of the variance of targets.

    0 for predicting their mean, below 0 if worse; NaN if all targets are equal.
    """
    return float(metrics.r2_score(targets, predictions)) if np.ptp(targets) > 0 else float("nan")


MEASURES: dict[str, Measure] = {"mae": mean_absolute_error, "r2": r2}


def regression_metrics(
    predictions: np.ndarray, targets: np.ndarray, patients: Sequence[str], seed: int
) -> dict[str, Interval]:
    """Measures of ``predictions [N]`` and ``targets [N]`` with 95% bootstrap intervals over patients."""
    return over_drawn_patients(MEASURES, predictions, targets, patients, seed)
