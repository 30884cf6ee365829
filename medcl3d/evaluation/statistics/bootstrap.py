"""Bootstrap intervals over test patients for measures that are not means, such as areas under curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from medcl3d.evaluation.statistics.intervals import Interval

RESAMPLES = 1000
Measure = Callable[[np.ndarray, np.ndarray], float]
"""A function of predictions and targets, one row per item."""


def over_drawn_patients(
    measures: Mapping[str, Measure],
    predictions: np.ndarray,
    targets: np.ndarray,
    patients: Sequence[str],
    seed: int,
) -> dict[str, Interval]:
    """Each measure of ``predictions [N, ...]`` and ``targets [N]`` with its 95% interval over patients.

    Percentile bootstrap: patients are drawn with replacement, each with all its items. Resamples in which a
    measure is undefined (one class only) are dropped. With one patient, the limits are NaN. A measure that is
    undefined on the whole sample is left out.
    """
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    rows = [np.flatnonzero(owner == i) for i in range(len(names))]
    rng = np.random.default_rng(seed)
    draws = [
        np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))])
        for _ in range(RESAMPLES if len(rows) > 1 else 0)
    ]
    found: dict[str, Interval] = {}
    for name, measure in measures.items():
        value = measure(predictions, targets)
        if np.isnan(value):
            continue
        drawn = np.array([measure(predictions[draw], targets[draw]) for draw in draws])
        drawn = drawn[~np.isnan(drawn)]
        low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (float("nan"), float("nan"))
        found[name] = Interval(value, float(low), float(high), len(names))
    return found
