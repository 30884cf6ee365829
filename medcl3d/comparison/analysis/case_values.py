"""The metric of every test patient in every run, if the metric is a mean over patients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medcl3d.comparison.plan.cells import Cell
from medcl3d.evaluation.statistics.intervals import MIN_CASES_FOR_TEST

TOLERANCE = 1e-5
"""Rows have six decimals."""

MATCHED = {"landmarks", "people"}
"""Parts of names of metrics of which a row belongs to two patients, and each is in several rows."""

Key = tuple[str, Cell, int]
"""Arm, cell, replicate."""


@dataclass(frozen=True)
class CaseValues:
    """Patients (the test cases), and the values ``[C]`` of each run; or the reason for which there are none.

    untested   reason for which these cases allow no test, "" otherwise
    """

    patients: tuple[str, ...] = ()
    of_run: Mapping[Key, np.ndarray] | None = None
    why_not: str = "the runs have no rows per patient"
    untested: str = ""


def by_patient(results: Mapping[str, Any], metric: str) -> dict[str, float]:
    """Patient -> mean of the metric, classes averaged within a scan and scans within a patient; empty if rows
    lack it.

    The metric is a column of `cases` (``dice``), one of a class (``dice/liver``), or one of a probe
    (``retrieval/recall@1``); accuracy is whether the predicted class is the true one.
    """
    rows: Sequence[Mapping[str, Any]] = results.get("cases", [])
    name = metric
    if "/" in metric:
        first, last = metric.split("/", 1)
        if any(row.get("probe") == first for row in rows):
            rows, name = [row for row in rows if row.get("probe") == first], last
        else:
            rows, name = [row for row in rows if str(row.get("class")) == last], first
    scans: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        value = row.get(name)
        if name == "accuracy" and "predicted" in row:
            value = float(row["predicted"] == row["class"])
        if isinstance(value, int | float) and math.isfinite(value) and "patient" in row:
            scans.setdefault(str(row["patient"]), {}).setdefault(str(row.get("scan")), []).append(
                float(value)
            )
    return {
        patient: float(np.mean([np.mean(values) for values in of.values()])) for patient, of in scans.items()
    }


def collect(found: Mapping[Key, tuple[float, Mapping[str, float]]], metric: str) -> CaseValues:
    """The table of all runs, each given by its metric and its patients' values; empty, with the reason, if
    they do not fit.

    The patients' mean must equal the metric, which an area under a curve, for example, does not. Values of
    patients that are matched with each other vary together, so intervals over them would be too short.
    """
    if MATCHED & set(metric.split("/")):
        return CaseValues(why_not=f"{metric} matches patients with each other, which are not independent")
    if not found or not all(values for _, values in found.values()):
        return CaseValues(why_not=f"the runs have no {metric} per patient")
    for value, values in found.values():
        mean = float(np.mean(list(values.values())))
        if not math.isclose(mean, value, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            return CaseValues(why_not=f"{metric} is not a mean over patients")
    common = set.intersection(*(set(values) for _, values in found.values()))
    every = set.union(*(set(values) for _, values in found.values()))
    if common != every:
        lack = f"{len(every - common)} of {len(every)} patients have no {metric} in some runs"
        return CaseValues(why_not=lack, untested=f"{lack}, so the means are over different patients")
    few = f"there are only {len(common)} test patients, and intervals of so few cover too little"
    few = few if len(common) < MIN_CASES_FOR_TEST else ""
    if len(common) < 2:
        return CaseValues(why_not="there is one patient", untested="there is one test patient")
    patients = tuple(sorted(common))
    of_run = {key: np.array([values[p] for p in patients]) for key, (_, values) in found.items()}
    return CaseValues(patients, of_run, "", few)
