"""Fields that only some files of a DICOM series have, and fields that differ within a series."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medcl3d.datasets.sources.dicom import dicom
from tests.datasets.dicoms import VOXELS, fault_of, item, the_only, write_frames, write_series

TWELVE = np.arange(12 * 7 * 6, dtype=np.int16).reshape(12, 7, 6)
Own = Callable[[int], dict[str, Any]]


def lower_half(name: str, value: Any) -> Own:
    return lambda n: {name: value if n < 6 else None}


def every_other(name: str, value: Any) -> Own:
    return lambda n: {name: value if n % 2 else None}


WHOSE = [
    ("PatientSex", "M"),
    ("PatientBirthDate", "19700101"),
    ("IssuerOfPatientID", "A"),
    ("PatientID", "007"),
    ("Modality", "MR"),
    ("SeriesInstanceUID", "1.2.9"),
    ("AcquisitionNumber", 1),
    ("EchoTime", 3.5),
    ("StudyInstanceUID", "1.2.8"),
    ("FrameOfReferenceUID", "1.2.7"),
]


@pytest.mark.parametrize("part", [lower_half, every_other])
@pytest.mark.parametrize(("name", "value"), WHOSE)
def test_a_field_in_some_files_does_not_split_a_series_and_is_reported(
    tmp_path: Path, part: Any, name: str, value: Any
) -> None:
    folder = write_series(tmp_path / "in", TWELVE, change=part(name, value), Modality="MR", SeriesNumber=3)
    manifest = dicom(folder, tmp_path / "raw")
    voxels, affine = the_only(manifest)
    assert voxels.shape == (6, 7, 12) and np.linalg.norm(affine[:3, 2]) == pytest.approx(3)
    np.testing.assert_array_equal(voxels, TWELVE.transpose(2, 1, 0) * 2 - 100)
    row = manifest.table.iloc[0]
    assert (row["patient"], row["modality"], row["frame"], row["study"], row["series"]) == (
        "007",
        "MR",
        "007/1.2.7",
        "1.2.8",
        "1.2.9",
    )
    notes = " ".join(manifest.notes)
    if name in ("Modality", "SeriesInstanceUID"):  # grouping depends on these
        assert f"6 files have no {name} and " in notes
        return
    assert f"its 12 files differ in {name} ({value} in 6, missing in 6)" in notes
    hidden = " ".join(dicom(folder, tmp_path / "hidden", hash_ids=True).notes)
    assert f"its 12 files differ in {name} (1 value, missing in 6)" in hidden and str(tmp_path) not in hidden


@pytest.mark.parametrize(
    ("name", "value", "others"),
    [
        ("RescaleSlope", 2, {"RescaleIntercept": None}),
        ("RescaleIntercept", -100, {"RescaleSlope": 2}),
        ("RescaleIntercept", 5, {"RescaleSlope": None}),
        ("PixelRepresentation", 1, {"RescaleSlope": None, "RescaleIntercept": None}),
    ],
)
def test_a_partly_missing_field_that_values_depend_on_is_refused(
    tmp_path: Path, name: str, value: Any, others: dict[str, Any]
) -> None:
    folder = write_series(
        tmp_path / "in", TWELVE, change=every_other(name, value), **{"Modality": "MR", **others}
    )
    if name == "PixelRepresentation":
        _without_field(folder, name)
    fault = fault_of(dicom(folder, tmp_path / "raw"))
    assert f"{name} is missing in 6 of 12 slices (IM" in fault and "fetch the originals" in fault


def _without_field(folder: Path, name: str) -> None:
    """Remove a field from every other file: the writer of the test files sets it even for None."""
    import pydicom

    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        if dataset.InstanceNumber % 2:
            delattr(dataset, name)
            dataset.save_as(path)


@pytest.mark.parametrize(("name", "value"), [("RescaleSlope", 1), ("RescaleIntercept", 0)])
def test_a_partly_missing_field_is_accepted_if_the_others_have_its_default(
    tmp_path: Path, name: str, value: int
) -> None:
    others = {"RescaleSlope": None, "RescaleIntercept": None}
    folder = write_series(
        tmp_path / "in", TWELVE, **{"Modality": "MR", **others, "change": every_other(name, value)}
    )
    manifest = dicom(folder, tmp_path / "raw")
    np.testing.assert_array_equal(the_only(manifest)[0], TWELVE.transpose(2, 1, 0))
    assert f"differ in {name} ({value} in 6, missing in 6)" in " ".join(manifest.notes)


def test_frames_that_partly_lack_a_slope_are_refused(tmp_path: Path) -> None:
    def values(n: int) -> dict[str, Any]:
        return (
            {"PixelValueTransformationSequence": [item(RescaleSlope=2, RescaleIntercept=0)]} if n > 1 else {}
        )

    frames = [
        item(PlanePositionSequence=[item(ImagePositionPatient=[1.0, 2.0, 4.0 * n])], **values(n))
        for n in range(5)
    ]
    write_frames(tmp_path / "in" / "a", VOXELS, frames)
    assert "RescaleSlope is missing in 2 of 5 slices (frame 1 of a, frame 2 of a)" in fault_of(
        dicom(tmp_path / "in", tmp_path / "raw")
    )


def test_differences_within_a_series_are_one_line_with_counts(tmp_path: Path) -> None:
    def change(n: int) -> dict[str, Any]:
        return {
            "StudyDate": "20200131" if n < 5 else "20200201",
            "PatientAge": f"0{n + 10}Y",
            "SliceThickness": "3.0" if n % 2 else "3",
        }

    manifest = dicom(write_series(tmp_path / "in", TWELVE, change=change), tmp_path / "raw")
    the_only(manifest)
    lines = [note for note in manifest.notes if "differ in" in note]
    assert len(lines) == 1 and lines[0].startswith("warning: 1 of 1 series, as ")
    assert (
        "PatientAge (010Y in 1, 011Y in 1, 012Y in 1, 9 other values), StudyDate (20200201 in 7, 20200131 "
        "in 5)" in lines[0]
    )
    assert "SliceThickness" not in lines[0], "3.0 is 3"


def test_differing_image_types_and_pixel_representations_are_reported(tmp_path: Path) -> None:
    """Differing image types of one volume are reported; a field that numbers the files is not."""

    def change(n: int) -> dict[str, Any]:
        kind = ["ORIGINAL" if n < 6 else "DERIVED", "PRIMARY"]
        return {"ImageType": kind, "PixelRepresentation": 1 if n < 3 else 0, "AcquisitionNumber": n + 1}

    manifest = dicom(write_series(tmp_path / "in", TWELVE, change=change), tmp_path / "raw")
    the_only(manifest)
    lines = [note for note in manifest.notes if "differ in" in note]
    assert len(lines) == 1 and "ImageType (ORIGINAL\\PRIMARY in 6, DERIVED\\PRIMARY in 6)" in lines[0]
    assert "PixelRepresentation (0 in 9, 1 in 3)" in lines[0] and "AcquisitionNumber" not in lines[0]


def test_two_people_under_one_uid_are_two_series_with_a_note(tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        write_series(tmp_path / "in" / patient, PatientID=patient)
    manifest = dicom(tmp_path / "in", tmp_path / "raw")
    assert sorted(manifest.table["patient"]) == ["p1", "p2"] and not manifest.faults
    note = "1 SeriesInstanceUIDs have several patients or modalities and were split into series by these"
    assert f"{note} (1.2.9 in" in " ".join(manifest.notes)


def test_files_that_may_be_of_two_people_are_refused(tmp_path: Path) -> None:
    def sex(n: int) -> dict[str, Any]:
        return {"PatientSex": ("M", "F", None)[n // 4]}

    fault = fault_of(dicom(write_series(tmp_path / "in", TWELVE, change=sex), tmp_path / "raw"))
    assert (
        "PatientSex has several values and is missing in 4 of 12 files, so their series is unknown" in fault
    )


def test_a_series_without_a_date_has_the_session_of_its_study(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "a", uid="1.2.1")
    write_series(tmp_path / "in" / "b", uid="1.2.2", StudyDate=None)
    table = dicom(tmp_path / "in", tmp_path / "raw").table
    assert set(table["session"]) == {"1"} and set(table["session_days"]) == {"0"}


def test_skipped_files_and_series_are_counted_and_named(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "a", uid="1.2.1")
    write_series(tmp_path / "in" / "b", VOXELS[:2], uid="1.2.2", SeriesNumber=2)
    write_series(tmp_path / "in" / "c", uid="1.2.3", Modality="MR", SeriesNumber=3)
    (tmp_path / "in" / "scan.nii.gz").write_bytes(b"x")
    notes = dicom(tmp_path / "in", tmp_path / "raw", modalities=("CT",)).notes
    assert "1 files are not DICOM images (scan.nii.gz)" in notes
    assert any(
        note.startswith("1 series of fewer than 3 slices were skipped (") and "series 2 (1.2.2)" in note
        for note in notes
    )
    assert any(
        note.startswith("1 series of MR were skipped (") and "series 3 (1.2.3)" in note for note in notes
    )
