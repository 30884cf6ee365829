"""Measures of multi-label classification, with intervals over test patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from medcl3d.evaluation.metrics.classification import (
    CALIBRATION_BINS,
    auroc,
    average_precision,
    balanced_accuracy,
)
from medcl3d.evaluation.statistics.bootstrap import Measure, over_drawn_patients
from medcl3d.evaluation.statistics.intervals import Interval

FindingMeasure = Callable[[np.ndarray, np.ndarray], float]
"""A function of the probabilities ``[N]`` and presence ``Bool[N]`` of one finding, N >= 1."""


def _as_two_classes(measure: Measure) -> FindingMeasure:
    """A measure of `classification` for the classes absent and present; NaN unless both occur."""

    def of_finding(probabilities: np.ndarray, present: np.ndarray) -> float:
        if present.all() or not present.any():
            return float("nan")
        return measure(np.stack([1 - probabilities, probabilities], axis=1), present.astype(int))

    return of_finding


def brier(probabilities: np.ndarray, present: np.ndarray) -> float:
    """The mean squared difference of probability and presence of a finding: 0 is best, 1 worst.

    Source: Brier 1950, for one event.
    """
    return float(((probabilities - present) ** 2).mean())


def calibration_error(probabilities: np.ndarray, present: np.ndarray) -> float:
    """Difference of the predicted probability and the frequency of a finding, over 10 equal bins.

    It is computed for the finding, not for the more probable class, which for a rare finding is almost always
    "absent" and correct. For few scans its expectation is above 0 even if probabilities are calibrated.
    Source: Kull et al. 2019, Beyond temperature scaling (classwise calibration error); Naeini et al. 2015.
    """
    bins = np.minimum((probabilities * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=present - probabilities, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(present))


MEASURES: dict[str, FindingMeasure] = {
    "auroc": _as_two_classes(auroc),
    "average_precision": _as_two_classes(average_precision),
    "balanced_accuracy": _as_two_classes(balanced_accuracy),
    "brier": brier,
    "calibration_error": calibration_error,
}


def finding_metrics(
    probabilities: np.ndarray, truth: np.ndarray, names: Sequence[str], patients: Sequence[str], seed: int
) -> dict[str, Interval]:
    """Measures with intervals of ``probabilities [N, K]`` and ``truth [N, K]`` (0, 1, NaN unknown).

    ``auroc/NAME`` is the measure of one finding, over the scans with a known value; ``auroc`` is the macro
    mean over the findings for which it is defined (areas and balanced accuracy need scans with and without
    the finding). A finding is predicted if its probability is above one half. Source: Zhang and Zhou 2014, A
    review on multi-label learning algorithms, section 2.2 (macro averages).
    """

    def of_finding(measure: FindingMeasure, k: int) -> Measure:
        def one(p: np.ndarray, t: np.ndarray) -> float:
            known = ~np.isnan(t[:, k])
            return measure(p[known, k], t[known, k] == 1) if known.any() else float("nan")

        return one

    measures = {
        f"{name}/{finding}": of_finding(measure, k)
        for name, measure in MEASURES.items()
        for k, finding in enumerate(names)
    }
    macro = {name: [f"{name}/{finding}" for finding in names] for name in MEASURES}
    return over_drawn_patients(measures, probabilities, truth, patients, seed, macro)
