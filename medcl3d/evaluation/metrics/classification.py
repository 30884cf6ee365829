"""Measures of classification, with intervals over test patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from medcl3d.evaluation.statistics.bootstrap import Measure, over_drawn_patients
from medcl3d.evaluation.statistics.intervals import Interval

CALIBRATION_BINS = 10
ClassMeasure = Callable[[np.ndarray, np.ndarray], float]
"""A function of the scores ``[N]`` of a class and ``Bool[N]``: whether an item is of the class."""


def auroc(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Area under the ROC curve of ``probabilities [N, K]`` for class indices ``[N]``.

    Two classes: the area of the second. More: the mean over the classes present, each against the rest. NaN
    if fewer than two classes are present. Ties count half. Source: Hanley and McNeil 1982; the rank-sum form.
    """
    return _mean_over_classes(_area, probabilities, targets)


def average_precision(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Area under the precision-recall curve as a sum of steps, for the classes of `auroc`.

    Items with equal scores form one step. NaN if fewer than two classes are present. Source: Davis and
    Goadrich 2006 (linear interpolation is too optimistic).
    """
    return _mean_over_classes(_precision, probabilities, targets)


def _mean_over_classes(measure: ClassMeasure, probabilities: np.ndarray, targets: np.ndarray) -> float:
    num_classes = probabilities.shape[1]
    classes = {k: targets == k for k in (range(num_classes) if num_classes > 2 else (1,))}
    partial = {k: positive for k, positive in classes.items() if positive.any() and not positive.all()}
    known = [measure(probabilities[:, k], positive) for k, positive in partial.items()]
    return float(np.mean(known)) if known else float("nan")


# Not scikit-learn's, which take 15 times as long: the bootstrap calls them a thousand times per class.
def _area(scores: np.ndarray, positive: np.ndarray) -> float:
    inside, rest = scores[positive], np.sort(scores[~positive])
    below = np.searchsorted(rest, inside, "left").sum() + np.searchsorted(rest, inside, "right").sum()
    return float(below / 2 / (len(inside) * len(rest)))


def _precision(scores: np.ndarray, positive: np.ndarray) -> float:
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # last item of each group of equal scores
    true_positives, retrieved = np.cumsum(positive[order])[last], np.arange(1, len(scores) + 1)[last]
    return float((np.diff(true_positives, prepend=0) * true_positives / retrieved).sum() / positive.sum())


def accuracy(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """The fraction of items whose most probable class is the true one."""
    return float((probabilities.argmax(1) == targets).mean())


def balanced_accuracy(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """The mean recall over the true classes."""
    correct = probabilities.argmax(1) == targets
    return float(np.mean([correct[targets == k].mean() for k in np.unique(targets)]))


def brier(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Mean squared distance between probabilities and truth, over all classes: 0 is best, 2 worst.

    Source: Brier 1950.
    """
    truth = np.eye(probabilities.shape[1])[targets]
    return float(((probabilities - truth) ** 2).sum(1).mean())


def calibration_error(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Expected calibration error: difference of confidence and accuracy, over 10 equal bins.

    For few items its expectation is above 0 even if probabilities are calibrated. Source: Naeini et al. 2015;
    Guo et al. 2017, eq. 3.
    """
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == targets
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(targets))


MEASURES: dict[str, Measure] = {
    "auroc": auroc,
    "average_precision": average_precision,
    "balanced_accuracy": balanced_accuracy,
    "accuracy": accuracy,
    "brier": brier,
    "calibration_error": calibration_error,
}


def classification_metrics(
    probabilities: np.ndarray, targets: np.ndarray, patients: Sequence[str], seed: int
) -> dict[str, Interval]:
    """Measures of ``probabilities [N, K]`` and classes ``[N]`` with 95% bootstrap intervals over patients."""
    return over_drawn_patients(MEASURES, probabilities, targets, patients, seed)
