"""Sentences on arms that start from weights of another project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medcl3d.comparison.plan.runs import Run
from medcl3d.core.errors import DataError
from medcl3d.downstream.results import INIT
from medcl3d.downstream.seen_patients import SAW_UNKNOWN
from medcl3d.io.json_file import read_record
from medcl3d.layouts.foreign import UNKNOWN

DIGITS = 12  # of a hash, in a sentence


def foreign_weights(runs: Sequence[Run]) -> list[str]:
    """A sentence per arm: its file, licence, the patients of its training, as far as they are known, and how
    the scans here are prepared differently.

    DataError if the file of an arm changed between its runs.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        record = read_record(run.folder / INIT)
        if not record:
            continue
        first = found.setdefault(run.name, record)
        if first["weights_sha256"] != record["weights_sha256"]:
            problem = f"the weights of arm {run.name} ({record['weights']}) changed between its runs"
            raise DataError(run.folder, problem, "delete the arm's runs to repeat them all")
    return [_sentence(arm, record) for arm, record in found.items()]


def _sentence(arm: str, record: Mapping[str, Any]) -> str:
    patients = record["pretraining_patients"]
    if patients == UNKNOWN:
        saw = SAW_UNKNOWN
    elif patients:
        saw = f"they were trained on {len(patients)} patients of these scans, none of whom is tested"
    else:
        saw = "they are stated not to have been trained on any of these patients"
    of = f"{record['weights']}, layout {record['layout']}, SHA-256 {record['weights_sha256'][:DIGITS]}"
    known = "; ".join([saw, *record["differences"]])
    return f"“{arm}” starts from weights of another project ({of}; licence: {record['licence']}): {known}"
