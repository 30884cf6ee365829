"""Means over patients with intervals."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from medcl3d.evaluation.statistics.intervals import Interval


def over_patients(values: ArrayLike, patients: Sequence[str], seed: int) -> Interval | None:
    """Mean over patients ``[n]`` with its 95% bootstrap interval; patients have equal weight.

    Values are averaged within patients, and patients are resampled (bias-corrected and accelerated if
    defined, Efron 1987). NaN is dropped; None if nothing remains. With one patient, the limits are NaN. `n`
    is the number of patients. The interval includes the variation between test patients, not between runs.
    """
    array, names = np.asarray(values, dtype=np.float64), np.asarray(patients)
    known = ~np.isnan(array)
    if not known.any():
        return None
    means = np.array([array[known & (names == name)].mean() for name in sorted(set(names[known].tolist()))])
    mean = float(means.mean())
    if len(means) == 1:
        return Interval(mean, float("nan"), float("nan"), 1)
    if np.ptp(means) == 0:
        return Interval(mean, mean, mean, len(means))
    from scipy import stats  # its import takes a second, which a pretraining can save

    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # BCa may be undefined; the next method is defined
            result = stats.bootstrap(
                (means,), np.mean, method=method, random_state=np.random.default_rng(seed)
            )
        low, high = (float(v) for v in result.confidence_interval)
        if np.isfinite([low, high]).all():
            break
    return Interval(mean, low, high, len(means))


def summary(cases: Sequence[Mapping[str, object]], names: Sequence[str], seed: int) -> dict[str, Interval]:
    """Means over patients of each measure in `names`, over all classes and per class (``dice/liver``).

    cases  one row per scan and class, with scan, patient, class and the measures (None if undefined)

    Classes are first averaged within a scan, so that scans have equal weight, whatever their number of
    structures.
    """

    def numbers(rows: Sequence[Mapping[str, object]], name: str) -> np.ndarray:
        return np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=np.float64)

    found: dict[str, Interval | None] = {}
    scans = {str(row["scan"]): str(row["patient"]) for row in cases}
    for name in names:
        of_scan = {scan: numbers([row for row in cases if row["scan"] == scan], name) for scan in scans}
        means = [float(np.nanmean(v)) if (~np.isnan(v)).any() else float("nan") for v in of_scan.values()]
        found[name] = over_patients(means, list(scans.values()), seed)
    for name in names:
        for label in dict.fromkeys(str(row["class"]) for row in cases):
            rows = [row for row in cases if row["class"] == label]
            found[f"{name}/{label}"] = over_patients(
                numbers(rows, name), [str(row["patient"]) for row in rows], seed
            )
    return {name: interval for name, interval in found.items() if interval is not None}
