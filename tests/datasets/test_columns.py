from __future__ import annotations

import pandas as pd
import pytest

from medcl3d.core.errors import DataError
from medcl3d.datasets.columns import non_numeric_cells, normalise_columns, similar_columns


def read(*names: str) -> tuple[list[str], list[str]]:
    table, notes = normalise_columns(pd.DataFrame([["x"] * len(names)], columns=list(names)), "scans.csv:1")
    return list(table.columns), notes


def test_known_names_may_be_spelled_differently() -> None:
    columns, notes = read("Path", "PATIENT", "Session Days", "label", "Age")
    assert columns == ["path", "patient", "session_days", "label", "Age"], "names of metadata are unchanged"
    assert notes == ["columns Path, PATIENT, Session Days are read as path, patient, session_days"]


@pytest.mark.parametrize(
    "name", ["subject_id", "Subject", "participant_id", "Patient ID", "PTID", "pateint", "patients"]
)
def test_a_column_that_may_be_the_patient_id_is_refused(name: str) -> None:
    with pytest.raises(
        DataError, match=f"scans.csv:1: column '{name}': may be the patient id.*rename {name} to patient"
    ):
        read("path", name)
    assert read("path", "patient", name)[0] == ["path", "patient", name], (
        "with a column patient, it is metadata"
    )


def test_other_names_are_not_patient_columns() -> None:
    assert similar_columns(["path", "inpatient", "patient_kg", "age", "site", "scanner", "score"]) == {}


def test_two_columns_of_one_meaning_are_refused() -> None:
    with pytest.raises(DataError, match="columns 'Patient' and 'patient' both mean patient; keep one"):
        read("path", "Patient", "patient")
    with pytest.raises(DataError, match="the column path is missing; rename 'image_path' to path"):
        read("patient", "image_path")


def test_columns_with_similar_names_are_reported() -> None:
    table = pd.DataFrame(
        {"path": ["a.nii"], "patient": ["p"], "visit": ["1"], "modalitiy": ["T1"], "lesion": ["m/a.nii.gz"]}
    )
    notes = normalise_columns(table, "scans.csv:1")[1]
    assert notes == [
        "column 'visit' counts as metadata; rename it to session if it means that",
        "column 'modalitiy' counts as metadata; rename it to modality if it means that",
        "column 'lesion' contains file paths and counts as metadata; rename it to label if these are "
        "segmentations",
    ]


def odd(cells: list[str]) -> list[str]:
    return non_numeric_cells(pd.DataFrame({"volume": cells}), lambda row, column: f"scans.csv:{row + 2}")


def test_a_typing_error_among_numbers_is_reported_with_its_place() -> None:
    assert odd(["12.5", "13.l", "9", "n/a", ""]) == [
        "column volume: 1 of its 5 cells are not numbers, so the column is read as categories; correct "
        "them, or write n/a ('13.l' in scans.csv:3)"
    ]
    assert "'NaN' in scans.csv:3, 'NaN' in scans.csv:4" in odd(["1", "NaN", "NaN", "2", "NaN"])[0]
    assert "2 of its 2 cells have a decimal comma" in odd(["1,5", "2,0"])[0]
    assert "2 of its 2 cells have a decimal comma" in odd(["1.070,5", "70,0"])[0]


@pytest.mark.parametrize(
    "cells",
    [
        ["1", "2.5", "1e3", "n/a"],
        ["a", "b", "1"],
        ["I", "II", "3a", "3b"],
        ["1", "2", "3a", "3b", "4"],
        ["", ""],
    ],
)
def test_columns_of_numbers_or_categories_have_no_note(cells: list[str]) -> None:
    assert odd(cells) == []
