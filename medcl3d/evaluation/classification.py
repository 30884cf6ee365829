"""How well classes were told apart, with what test patients say of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from medcl3d.evaluation.statistics import Interval

RESAMPLES = 1000


def auroc(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Area under the ROC curve of ``probabilities [N, K]`` for class indices ``[N]``.

    Two classes: of the second. More: the mean over classes, each against the rest, of those that are there.
    NaN where fewer than two classes are there. Ties count half. Source: Hanley and McNeil 1982; the rank-sum form.
    """
    num_classes = probabilities.shape[1]
    areas = [_area(probabilities[:, k], targets == k) for k in (range(num_classes) if num_classes > 2 else (1,))]
    known = [area for area in areas if not np.isnan(area)]
    return float(np.mean(known)) if known else float("nan")


def _area(scores: np.ndarray, positive: np.ndarray) -> float:
    num, rest = int(positive.sum()), int((~positive).sum())
    if not num or not rest:
        return float("nan")
    return float((stats.rankdata(scores)[positive].sum() - num * (num + 1) / 2) / (num * rest))


def accuracy(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """The share of things whose likeliest class is the true one."""
    return float((probabilities.argmax(1) == targets).mean())


def balanced_accuracy(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """The mean over the true classes of the share that was found."""
    right = probabilities.argmax(1) == targets
    return float(np.mean([right[targets == k].mean() for k in np.unique(targets)]))


MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "auroc": auroc,
    "balanced_accuracy": balanced_accuracy,
    "accuracy": accuracy,
}


def classification_metrics(probabilities: np.ndarray, targets: np.ndarray, patients: Sequence[str], seed: int) -> dict[str, Interval]:
    """Each measure of ``probabilities [N, K]`` and class indices ``[N]`` with its 95% interval over patients.

    Percentile bootstrap: patients are drawn with replacement, each brings all that it has. Draws in which a measure
    is not defined (one class only) do not count. One patient: the limits are NaN. A measure that is not defined on
    all of them is left out.
    """
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    rows = [np.flatnonzero(owner == i) for i in range(len(names))]
    rng = np.random.default_rng(seed)
    draws = [np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))]) for _ in range(RESAMPLES if len(rows) > 1 else 0)]
    found: dict[str, Interval] = {}
    for name, measure in MEASURES.items():
        value = measure(probabilities, targets)
        if np.isnan(value):
            continue
        drawn = np.array([measure(probabilities[draw], targets[draw]) for draw in draws])
        drawn = drawn[~np.isnan(drawn)]
        low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (float("nan"), float("nan"))
        found[name] = Interval(value, float(low), float(high), len(names))
    return found
