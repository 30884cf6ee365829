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
    means: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Interval]:
    """Each measure of ``predictions [N, ...]`` and ``targets [N]`` with its 95% interval over patients.

    means  name -> the measures whose mean it is, of those that are defined in a resample

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
    samples = [np.arange(len(owner)), *draws]
    values = {
        name: np.array([measure(predictions[sample], targets[sample]) for sample in samples])
        for name, measure in measures.items()
    }
    values = {
        name: mean_of_defined([values[part] for part in parts]) for name, parts in (means or {}).items()
    } | values
    found: dict[str, Interval] = {}
    for name, (value, *resampled) in values.items():
        if np.isnan(value):
            continue
        drawn = np.array(resampled)
        drawn = drawn[~np.isnan(drawn)]
        low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (float("nan"), float("nan"))
        found[name] = Interval(float(value), float(low), float(high), len(names))
    return found


def mean_of_defined(values: Sequence[np.ndarray]) -> np.ndarray:
    """The means ``[R]`` of several values ``[R]`` each, of those that are not NaN; NaN if none is."""
    every = np.stack(values)
    known = ~np.isnan(every)
    total, number = np.where(known, every, 0).sum(axis=0), known.sum(axis=0)
    return np.divide(total, number, out=np.full(len(total), np.nan), where=number > 0)
