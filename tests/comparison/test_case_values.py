"""The metric per test patient: computed as the metric itself, and only if the metric is a mean over
patients.
"""

from __future__ import annotations

import numpy as np
import pytest

from medcl3d.comparison.analysis.case_values import by_patient, collect
from medcl3d.evaluation.metrics.classification import classification_metrics
from medcl3d.evaluation.statistics.over_patients import summary

RNG = np.random.default_rng(4)


def rows(patients: int = 5) -> list[dict]:
    """Two scans of the first patient, two classes per scan, one value missing."""
    scans = [("p0", "p0_b"), *((f"p{k}", f"s{k}") for k in range(patients))]
    found = [
        {"scan": scan, "patient": patient, "class": name, "dice": float(RNG.uniform()), "hd95_mm": 1.0}
        for patient, scan in scans
        for name in ("liver", "spleen")
    ]
    found[-1]["dice"] = None
    return found


@pytest.mark.parametrize("metric", ["dice", "dice/liver", "dice/spleen"])
def test_patients_average_to_the_metric_of_a_segmentation(metric):
    cases = rows()
    found = by_patient({"cases": cases}, metric)
    assert np.mean(list(found.values())) == pytest.approx(summary(cases, ("dice", "hd95_mm"), 0)[metric].mean)
    assert ("p4" in found) == (metric != "dice/spleen")


def test_each_probe_has_its_own_rows():
    cases = [
        {"probe": probe, "scan": f"s{k}", "patient": f"p{k}", "recall@1": float(k + n)}
        for n, probe in enumerate("ab")
        for k in (0, 1)
    ]
    assert by_patient({"cases": cases}, "b/recall@1") == {"p0": 1.0, "p1": 2.0}
    assert by_patient({"cases": cases}, "b/auroc") == {}


def test_accuracy_is_a_mean_over_patients_and_the_area_under_a_curve_is_not():
    probabilities = RNG.dirichlet([1, 1], 8)
    targets = np.array([0, 1] * 4)
    patients = [f"p{k}" for k in range(8)]
    metrics = classification_metrics(probabilities, targets, patients, 0)
    cases = [
        {
            "scan": p,
            "patient": p,
            "class": "ab"[t],
            "predicted": "ab"[int(row.argmax())],
            "probability": row[t],
        }
        for p, t, row in zip(patients, targets, probabilities, strict=True)
    ]
    found = by_patient({"cases": cases}, "accuracy")
    assert np.mean(list(found.values())) == pytest.approx(metrics["accuracy"].mean)
    assert collect({("a", (), 0): (metrics["accuracy"].mean, found)}, "accuracy").patients == tuple(patients)
    assert (
        "no auroc per patient"
        in collect({("a", (), 0): (0.5, by_patient({"cases": cases}, "auroc"))}, "auroc").why_not
    )


def test_unsuitable_values_have_a_reason():
    fits = {"p0": 0.2, "p1": 0.4}
    assert collect({("a", (), 0): (0.3, fits)}, "dice").why_not == ""
    assert "not a mean over patients" in collect({("a", (), 0): (0.5, fits)}, "dice").why_not
    assert (
        "1 of 3 patients"
        in collect({("a", (), 0): (0.3, fits), ("a", (), 1): (0.3, fits | {"p2": 0.3})}, "dice").why_not
    )
    assert "one patient" in collect({("a", (), 0): (0.2, {"p0": 0.2})}, "dice").why_not
    assert collect({}, "dice").of_run is None


def test_few_or_different_patients_are_not_tested():
    same = {f"p{k}": 0.1 * k for k in range(5)}
    lacks = {name: value for name, value in same.items() if name != "p4"}
    mean, fewer = np.mean(list(same.values())), np.mean(list(lacks.values()))
    assert collect({("a", (), 0): (mean, same)}, "dice").untested == ""
    assert collect({("a", (), 0): (fewer, lacks)}, "dice").untested.startswith(
        "there are only 4 test patients"
    )
    assert (
        "means are over different patients"
        in collect({("a", (), 0): (mean, same), ("b", (), 0): (fewer, lacks)}, "dice").untested
    )
    assert collect({("a", (), 0): (0.2, {"p0": 0.2})}, "dice").untested == "there is one test patient"


@pytest.mark.parametrize("metric", ["landmarks/error_mm", "voxel_matching/people/within_5mm"])
def test_patients_that_are_matched_with_each_other_are_not_cases(metric):
    values = {f"p{k}": 0.1 * k for k in range(5)}
    found = collect({("a", (), 0): (0.2, values)}, metric)
    assert found.of_run is None and "not independent" in found.why_not and not found.untested
    assert collect({("a", (), 0): (0.2, values)}, "voxel_matching/frame/within_5mm").of_run is not None
