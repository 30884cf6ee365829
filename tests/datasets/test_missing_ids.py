"""Text that programs write for missing values is not an id, class or path, in any source."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medcl3d.core.errors import DataError
from medcl3d.datasets.manifest import Manifest
from medcl3d.datasets.sources import SOURCES

# Text that pandas reads as missing (STR_NA_VALUES), and text of spreadsheets, databases and people.
# NA alone may be an id.
NUMBERS = ["-1.#IND", "1.#QNAN", "1.#IND", "-1.#QNAN", "NaN", "-NaN", "nan", "-nan"]
PANDAS = [*NUMBERS, "#N/A", "N/A", "n/a", "<NA>", "#NA", "#N/A N/A", "NULL", "null", "None"]
OTHERS = [
    "NaT",
    "none",
    "-",
    "?",
    "--",
    ".",
    "(null)",
    "\\N",
    "#REF!",
    "#NAME?",
    "#######",
    "unknown",
    "Missing",
    "\u200b",
    "na\u200bn",
]
OTHERS += ["_", "[]", "#WERT!", "#N/D", "n.d."]


def write(tmp_path: Path, text: str) -> Manifest:
    (tmp_path / "m.csv").write_text(text)
    return SOURCES.get("csv")(tmp_path / "m.csv")


@pytest.mark.parametrize("text", [*PANDAS, *OTHERS])
@pytest.mark.parametrize("column", ["patient", "scan"])
def test_ids_that_mean_missing_are_refused(tmp_path: Path, column: str, text: str) -> None:
    with pytest.raises(DataError, match=rf"m\.csv:3: {column} = .*: is text for a missing value") as caught:
        write(tmp_path, f"path,{column}\na.nii,p1\nb.nii,{text}\n")
    assert "\n" not in str(caught.value)
    with pytest.raises(
        DataError, match=rf"m\.csv:2: {column} = .*: is text for a missing value, as in 2 rows"
    ):
        write(tmp_path, f"path,{column}\na.nii,{text}\nb.nii,{text}\n")


def test_na_may_be_the_id_of_one_scan(tmp_path: Path) -> None:
    assert write(tmp_path, "path,patient\na.nii,NA\nb.nii,NB\n").table["patient"].tolist() == ["NA", "NB"]
    with pytest.raises(DataError, match="patient = 'NA': is text for a missing value, as in 2 rows"):
        write(tmp_path, "path,patient\na.nii,NA\nb.nii,NA\n")  # as R writes it


@pytest.mark.parametrize(
    "column", ["session", "class", "modality", "session_days", "split", "label", "atlas", "age", "sex"]
)
def test_missing_text_in_other_columns_becomes_empty_with_a_note(tmp_path: Path, column: str) -> None:
    manifest = write(tmp_path, f"path,patient,{column}\na.nii,p,NaN\nb.nii,q,n/a\nc.nii,r,None\nd.nii,s,\n")
    assert manifest.table[column].replace("n/a", "").tolist() == ["", "", "", ""]
    place = tmp_path / "m.csv"
    text = f"column {column}: 2 of its 4 cells contain text for a missing value and are read as empty"
    assert f"{text} ('NaN' in {place}:2, 'None' in {place}:4)" in manifest.notes


def test_scans_without_a_frame_do_not_share_one(tmp_path: Path) -> None:
    table = write(tmp_path, "path,scan,patient,frame\na.nii,a,p,n/a\nb.nii,b,q,n/a\nc.nii,c,r,NaN\n").table
    assert table["frame"].tolist() == ["a", "b", "c"]


def test_metadata_keeps_possible_values(tmp_path: Path) -> None:
    table = write(
        tmp_path, "path,patient,site,her2,drug\na.nii,p,NA,-,None\nb.nii,q,NaN,+,#N/A\nc.nii,r,,?,n/a\n"
    ).table
    assert table["site"].tolist() == ["NA", "", ""]
    assert table["her2"].tolist() == ["-", "+", "?"] and table["drug"].tolist() == ["None", "", "n/a"]
    assert write(tmp_path, "path,patient,class\na.nii,p,-\nb.nii,q,+\n").table["class"].tolist() == ["-", "+"]


def test_missing_classes_are_empty_and_doubtful_ones_are_reported(tmp_path: Path) -> None:
    classes = [
        "healthy",
        "lesion",
        "nan",
        "NaN",
        "unknown",
        "None",
        "healthy",
        "lesion",
        "Healthy",
        "healthy",
    ]
    manifest = write(
        tmp_path,
        "path,patient,class\n" + "".join(f"a{i}.nii,p{i},{name}\n" for i, name in enumerate(classes)),
    )
    assert sorted(set(manifest.table["class"])) == ["", "Healthy", "healthy", "lesion", "unknown"]
    at = tmp_path / "m.csv"
    assert f"('healthy' of 3 scans, first in {at}:2 and 'Healthy' of 1 scans, first in {at}:10)" in "\n".join(
        manifest.notes
    )
    note = "classes may mean that the class is unknown; if so, empty the cells"
    assert f"{note} ('unknown' of 1 scans, first in {at}:6)" in "\n".join(manifest.notes)


def test_two_spellings_of_modalities_and_groups_are_reported(tmp_path: Path) -> None:
    manifest = write(tmp_path, "path,patient,modality,sex,volume\na.nii,p,T1w,M,1\nb.nii,q,T1W,m,1.0\n")
    notes = "\n".join(manifest.notes)
    assert "column modality: 1 names" in notes and "column sex: 1 names" in notes and "volume" not in notes


def test_missing_ids_in_json_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(
        json.dumps([{"path": "a.nii", "patient": "NaN"}, {"path": "b.nii", "patient": "p"}])
    )
    with pytest.raises(DataError, match="object 1: patient = 'NaN': is text for a missing value"):
        SOURCES.get("csv")(tmp_path / "m.json")


def test_missing_ids_in_folders_and_subjects_are_refused(tmp_path: Path, write_nifti) -> None:
    for file in ("None/1_T1.nii.gz", "p2/nan_T1.nii.gz"):
        write_nifti(f"f/{file}", np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(DataError, match=r"None/1_T1.nii.gz: patient = 'None': is text for a missing value"):
        SOURCES.get("folder")(tmp_path / "f", pattern="{patient}/{session}_{modality}.nii.gz")
    (tmp_path / "f" / "None").rename(tmp_path / "f" / "p1")
    assert SOURCES.get("folder")(tmp_path / "f", pattern="{patient}/{session}_{modality}.nii.gz").table[
        "session"
    ].tolist() == ["1", ""]
    write_nifti("b/sub-nan/anat/sub-nan_T1w.nii.gz", np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(DataError, match="patient = 'sub-nan': is text for a missing value"):
        SOURCES.get("bids")(tmp_path / "b")
