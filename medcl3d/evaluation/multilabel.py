"""How well findings were told of which a scan may have any number, with what test patients say of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from medcl3d.evaluation.bootstrap import Measure, over_drawn_patients
from medcl3d.evaluation.classification import CALIBRATION_BINS, auroc, average_precision, balanced_accuracy
from medcl3d.evaluation.statistics import Interval

OfOne = Callable[[np.ndarray, np.ndarray], float]
"""Of one finding's probabilities ``[N]`` and presence ``Bool[N]``, one or more."""


def _as_two_classes(measure: Measure) -> OfOne:
    """What `classification` says of absent and present; NaN where one of the two is not there."""

    def of_one(probabilities: np.ndarray, present: np.ndarray) -> float:
        if present.all() or not present.any():
            return float("nan")
        return measure(np.stack([1 - probabilities, probabilities], axis=1), present.astype(int))

    return of_one


def brier(probabilities: np.ndarray, present: np.ndarray) -> float:
    """The mean squared distance of a finding's probability to its presence, 0 at best, 1 at worst. Source: Brier 1950, of one event."""
    return float(((probabilities - present) ** 2).mean())


def calibration_error(probabilities: np.ndarray, present: np.ndarray) -> float:
    """How far a finding's probability is from how often it is there, over 10 equal bins.

    Of the finding itself, not of the likelier answer: where few have it, the latter is nearly always "absent", and right. Its
    expectation is above 0 for few scans even where probabilities are right. Source: Kull et al. 2019, Beyond temperature scaling
    (classwise calibration error); Naeini et al. 2015.
    """
    bins = np.minimum((probabilities * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=present - probabilities, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(present))


MEASURES: dict[str, OfOne] = {
    "auroc": _as_two_classes(auroc),
    "average_precision": _as_two_classes(average_precision),
    "balanced_accuracy": _as_two_classes(balanced_accuracy),
    "brier": brier,
    "calibration_error": calibration_error,
}


def finding_metrics(
    probabilities: np.ndarray, truth: np.ndarray, names: Sequence[str], patients: Sequence[str], seed: int
) -> dict[str, Interval]:
    """Each measure of ``probabilities [N, K]`` and ``truth [N, K]`` (0, 1, NaN not known), with its 95% bootstrap interval over patients.

    ``auroc/NAME`` is of one finding, over the things of which it is known; ``auroc`` the plain (macro) mean over the findings of which
    it is defined: areas and balanced accuracy where some have the finding and some do not. A positive answer is a probability above
    one half. Source: Zhang and Zhou 2014, A review on multi-label learning algorithms, section 2.2 (macro averages).
    """

    def of_finding(measure: OfOne, k: int) -> Measure:
        def one(p: np.ndarray, t: np.ndarray) -> float:
            known = ~np.isnan(t[:, k])
            return measure(p[known, k], t[known, k] == 1) if known.any() else float("nan")

        return one

    def macro(measures: Sequence[Measure]) -> Measure:
        def mean(p: np.ndarray, t: np.ndarray) -> float:
            found = np.array([measure(p, t) for measure in measures])
            return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")

        return mean

    asked: dict[str, Measure] = {}
    for name, measure in MEASURES.items():
        single = [of_finding(measure, k) for k in range(len(names))]
        asked |= {name: macro(single), **{f"{name}/{finding}": one for finding, one in zip(names, single, strict=True)}}
    return over_drawn_patients(asked, probabilities, truth, patients, seed)
