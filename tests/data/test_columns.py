from __future__ import annotations

import pandas as pd
import pytest

from medcl3d.data.columns import meant_columns, near_columns, odd_cells
from medcl3d.errors import DataError


def read(*names: str) -> tuple[list[str], list[str]]:
    table, notes = meant_columns(pd.DataFrame([["x"] * len(names)], columns=list(names)), "scans.csv:1")
    return list(table.columns), notes


def test_known_names_may_be_written_otherwise() -> None:
    columns, notes = read("Path", "PATIENT", "Session Days", "label", "Age")
    assert columns == ["path", "patient", "session_days", "label", "Age"], "metadata is called as its owner calls it"
    assert notes == ["columns Path, PATIENT, Session Days are read as path, patient, session_days"]


@pytest.mark.parametrize("name", ["subject_id", "Subject", "participant_id", "Patient ID", "PTID", "pateint", "patients"])
def test_a_column_that_seems_to_say_whose_a_scan_is_is_asked_about(name: str) -> None:
    with pytest.raises(DataError, match=f"scans.csv:1: column '{name}': does it say whose a scan is.*rename {name} to patient"):
        read("path", name)
    assert read("path", "patient", name)[0] == ["path", "patient", name], "where there are patients, it is metadata"


def test_other_words_are_no_patients() -> None:
    assert near_columns(["path", "inpatient", "patient_kg", "age", "site", "scanner", "score"]) == {}


def test_two_columns_of_one_meaning_are_refused() -> None:
    with pytest.raises(DataError, match="columns 'Patient' and 'patient' both mean patient; keep one"):
        read("path", "Patient", "patient")
    with pytest.raises(DataError, match="the column path is missing; rename 'image_path' to path"):
        read("patient", "image_path")


def test_columns_that_are_near_known_ones_are_named() -> None:
    table = pd.DataFrame({"path": ["a.nii"], "patient": ["p"], "visit": ["1"], "modalitiy": ["T1"], "lesion": ["m/a.nii.gz"]})
    notes = meant_columns(table, "scans.csv:1")[1]
    assert notes == [
        "column 'visit' counts as metadata; rename it to session if it is that",
        "column 'modalitiy' counts as metadata; rename it to modality if it is that",
        "column 'lesion' holds files and counts as metadata; rename it to label if those are the segmentations",
    ]


def odd(cells: list[str]) -> list[str]:
    return odd_cells(pd.DataFrame({"volume": cells}), lambda row, column: f"scans.csv:{row + 2}")


def test_a_slip_among_numbers_is_named_with_its_place() -> None:
    assert odd(["12.5", "13.l", "9", "n/a", ""]) == [
        "column volume: 1 of its 5 cells are no numbers, so all of them are taken for names; correct them, or write n/a "
        "('13.l' in scans.csv:3)"
    ]
    assert "'NaN' in scans.csv:3, 'NaN' in scans.csv:4" in odd(["1", "NaN", "NaN", "2", "NaN"])[0]
    assert "2 of its 2 cells have a decimal comma" in odd(["1,5", "2,0"])[0]
    assert "2 of its 2 cells have a decimal comma" in odd(["1.070,5", "70,0"])[0]


@pytest.mark.parametrize(
    "cells", [["1", "2.5", "1e3", "n/a"], ["a", "b", "1"], ["I", "II", "3a", "3b"], ["1", "2", "3a", "3b", "4"], ["", ""]]
)
def test_numbers_and_names_are_left_alone(cells: list[str]) -> None:
    assert odd(cells) == []
