from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest

from medcl3d.core.errors import DataError
from medcl3d.datasets.dicom.header import OF_A_FILE, read_header
from medcl3d.datasets.dicom.order import affine_of, sorted_slices
from medcl3d.datasets.dicom.slices import slices_of
from medcl3d.datasets.sources.dicom import dicom
from medcl3d.preprocessing.options import PrepareOptions
from medcl3d.preprocessing.prepare import prepare
from medcl3d.preprocessing.read_scan import read_image, read_label
from medcl3d.store.store import Store
from tests.datasets.dicoms import (
    CT,
    SHAPE,
    VOXELS,
    fault_of,
    item,
    pydicom,
    shifted,
    spoil,
    the_only,
    without_preamble,
    write_frames,
    write_series,
    write_slice,
)


def test_a_series_is_sorted_by_position_and_in_hu(tmp_path: Path) -> None:
    manifest = dicom(write_series(tmp_path / "in" / "p1" / "a"), tmp_path / "raw")
    voxels, affine = the_only(manifest)
    np.testing.assert_array_equal(voxels, VOXELS.transpose(2, 1, 0) * 2 - 100)
    np.testing.assert_allclose(affine, [[-1.5, 0, 0, -10], [0, -2, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]])
    row = manifest.table.iloc[0]
    assert (row["patient"], row["session"], row["session_days"], row["modality"], row["frame"]) == (
        "007",
        "1",
        "0",
        "CT",
        "007/1.2.7",
    )
    assert (row["study_date"], row["study"], row["series"]) == ("20200131", "1.2.8", "1.2.9")


def test_an_oblique_series_in_reverse_order_keeps_its_geometry(tmp_path: Path) -> None:
    """World positions of voxels equal the standard's formula (PS3.3 C.7.6.2.1.1)."""
    angle = np.radians(25)
    rows, columns = np.array([np.cos(angle), np.sin(angle), 0]), np.array([0, 0, -1.0])
    normal = np.cross(rows, columns)

    def place(number: int) -> dict[str, Any]:
        return {"ImagePositionPatient": (np.array([5, 6, 7]) - 2.5 * number * normal).round(6).tolist()}

    folder = write_series(tmp_path / "in", change=place, ImageOrientationPatient=[*rows.round(6), *columns])
    voxels, affine = the_only(dicom(folder, tmp_path / "raw"))
    assert np.linalg.det(affine) != 0
    for number, row, column in ((0, 0, 0), (4, 6, 5), (2, 1, 3)):
        lps = np.array(place(number)["ImagePositionPatient"]) + rows * 1.5 * column + columns * 2.0 * row
        index = np.linalg.inv(affine) @ np.array([-lps[0], -lps[1], lps[2], 1])
        found = voxels[tuple(np.round(index[:3]).astype(int))]
        assert (
            np.allclose(index, np.round(index), atol=1e-3) and found == VOXELS[number, row, column] * 2 - 100
        )


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"RescaleSlope": 0}, "RescaleSlope is 0"),
        ({"RescaleType": "MGML"}, "a CT whose RescaleType is 'MGML', so its values are not HU"),
        ({"RescaleIntercept": None}, "a CT without RescaleSlope and RescaleIntercept"),
        ({"change": shifted(3, 3)}, "1 slices are missing between IM4_129 and IM1_129: 6 mm, elsewhere 3 mm"),
        ({"change": shifted(3, 0.5)}, "unevenly spaced: 3.5 mm between"),
        ({"change": shifted(3, -3)}, "have one position: a time series"),
        (
            {"change": lambda n: {"ImagePositionPatient": [10.0, 20.0 + n, 30.0 + 3 * n]}},
            "the gantry is tilted",
        ),
        (
            {"change": lambda n: {"ImageOrientationPatient": [1, 0, 0, 0, 0, 1]} if n == 2 else {}},
            "the orientation varies",
        ),
        ({"change": lambda n: {"PixelSpacing": [1, 1]} if n == 2 else {}}, "not one volume"),
        ({"RescaleSlope": None}, "a CT without RescaleSlope"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "is 'MONOCHROME1'"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "not a pair of orthogonal directions"),
        ({"PixelSpacing": None}, "PixelSpacing is missing"),
        ({"NumberOfFrames": 2}, "has several frames without positions"),
    ],
)
def test_an_irregular_grid_is_refused_with_its_series(
    tmp_path: Path, fields: dict[str, Any], fault: str
) -> None:
    manifest = dicom(write_series(tmp_path / "in" / "p1", **fields), tmp_path / "raw")
    assert fault in fault_of(manifest) and "p1: series 1.2.9" in fault_of(manifest)


@pytest.mark.parametrize(
    ("keyword", "vr", "value", "fault"),
    [
        ("RescaleSlope", "DS", b"abc ", "RescaleSlope is 'abc', a number is needed"),
        ("RescaleSlope", "DS", b"1\\2 ", "RescaleSlope is '1\\\\2', a number is needed"),
        ("RescaleSlope", "DS", b"nan ", "RescaleSlope is 'nan', a number is needed"),
        ("RescaleSlope", "DS", b"inf ", "RescaleSlope is 'inf', a number is needed"),
        ("RescaleIntercept", "DS", b"-1024,0 ", "RescaleIntercept is '-1024,0', a number is needed"),
        ("NumberOfFrames", "IS", b"x ", "NumberOfFrames is 'x', a number is needed"),
        ("Rows", "US", b"", "Rows is missing, a number is needed"),
        ("Columns", "US", b"\1", "Columns is "),
        (
            "ImagePositionPatient",
            "DS",
            b"1\\2\\x ",
            "ImagePositionPatient is '1\\\\2\\\\x', 3 numbers are needed",
        ),
        ("PixelSpacing", "DS", b"0,7\\0,7", "PixelSpacing is '0,7\\\\0,7', 2 numbers are needed"),
    ],
)
def test_an_invalid_value_refuses_only_its_series(
    tmp_path: Path, keyword: str, vr: str, value: bytes, fault: str
) -> None:
    write_series(tmp_path / "in" / "good", uid="1.2.1")
    spoil(write_series(tmp_path / "in" / "bad", SeriesNumber=4) / "IM4_129", keyword, vr, value)
    manifest = dicom(tmp_path / "in", tmp_path / "raw")
    message = fault_of(manifest)
    assert fault in message and "in/bad: series 4 (1.2.9): IM4_129: " in message
    good = manifest.table[~manifest.table["scan"].isin(list(manifest.faults))]
    assert good["series"].tolist() == ["1.2.1"] and manifest.locate(good["path"].iloc[0]).exists()
    hidden = dicom(tmp_path / "in", tmp_path / "hidden", hash_ids=True)
    assert fault_of(hidden).startswith("file ") and "'" not in fault_of(hidden), (
        "the text itself might be a name"
    )


@pytest.mark.parametrize(
    ("keyword", "vr", "value"),
    [
        ("SamplesPerPixel", "US", b""),
        ("SeriesNumber", "IS", b"1.5 "),
        ("StudyDate", "DA", b"2020.01.01"),
        ("PatientID", "LO", b"x" * 300),
        ("PatientID", "LO", "Müller".encode("latin-1") * 20),
        ("PatientID", "LO", b"../../a\\b\nc"),
        ("Modality", "CS", b"CT/../x "),
    ],
)
def test_invalid_values_that_voxels_do_not_depend_on_are_accepted(
    tmp_path: Path, keyword: str, vr: str, value: bytes
) -> None:
    for path in write_series(tmp_path / "in").iterdir():
        spoil(path, keyword, vr, value)
    the_only(dicom(tmp_path / "in", tmp_path / "raw"))
    assert {path.parent for path in tmp_path.rglob("*.nii.gz")} == {tmp_path / "raw"}


def test_a_ct_in_unspecified_units_is_read_as_hu_with_a_warning(tmp_path: Path) -> None:
    manifest = dicom(write_series(tmp_path / "in", RescaleType="US"), tmp_path / "raw")
    assert the_only(manifest)[0].min() == -100 and "units are unspecified" in " ".join(manifest.notes)


@pytest.mark.parametrize("implicit", [True, False])
def test_files_without_the_preamble_are_read_as_simpleitk_reads_them(tmp_path: Path, implicit: bool) -> None:
    import SimpleITK as sitk

    folder = write_series(tmp_path / "in")
    with_preamble = the_only(dicom(folder, tmp_path / "raw"))
    for path in folder.iterdir():
        without_preamble(path, implicit=implicit)
        assert path.read_bytes()[128:132] != b"DICM"
    voxels, affine = the_only(dicom(folder, tmp_path / "other"))
    np.testing.assert_array_equal(voxels, with_preamble[0])
    np.testing.assert_array_equal(affine, with_preamble[1])
    names = sorted(
        folder.iterdir(), key=lambda path: float(read_header(path).numbers("ImagePositionPatient", 3)[2])
    )
    np.testing.assert_array_equal(
        voxels, sitk.GetArrayFromImage(sitk.ReadImage([str(path) for path in names])).transpose(2, 1, 0)
    )
    (folder / "two").write_bytes(b"\x08\x00\x05\x00" + b"\xff" * 400)  # begins like a DICOM file by chance
    assert "1 files are not DICOM" in " ".join(dicom(folder, tmp_path / "other").notes)


def test_slices_that_share_one_uid_are_not_duplicates(tmp_path: Path) -> None:
    """Faulty anonymisation gives every instance the same UID."""
    folder = write_series(tmp_path / "in", change=lambda n: {"SOPInstanceUID": "1.2.3"})
    manifest = dicom(folder, tmp_path / "raw")
    assert the_only(manifest)[0].shape == (6, 7, 5) and "duplicate" not in " ".join(manifest.notes)


def test_names_of_people_are_not_read() -> None:
    from pydicom.datadict import dictionary_VR

    def names_of(fields: Mapping[str, Any]) -> list[str]:
        of_items = [name for sequence, inner in fields.items() if sequence for name in names_of(inner)]
        return [*fields.get("", ()), *of_items]

    names = names_of(OF_A_FILE)
    assert "PatientID" in names and "CodeValue" in names and "PixelSpacing" in names
    assert not [name for name in names if dictionary_VR(name) in ("PN", "LT", "ST", "UT")]


def test_a_duplicate_slice_is_skipped_with_a_warning(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "in")
    shutil.copy(folder / "IM4_129", folder / "copy")
    manifest = dicom(folder, tmp_path / "raw")
    assert the_only(manifest)[0].shape == (6, 7, 5)
    notes = " ".join(manifest.notes)
    assert any(f"duplicate slices, one copy skipped: {name}" in notes for name in ("copy", "IM4_129"))


def unknown_codec(folder: Path) -> Path:
    """Encode all files as MPEG2, which no reader decodes as slices."""
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
        dataset.PixelData = pydicom.encaps.encapsulate([dataset.PixelData])
        dataset["PixelData"].VR = "OB"
        dataset.save_as(path)
    return folder


def test_an_unknown_codec_and_cut_files_are_refused(tmp_path: Path) -> None:
    folder = unknown_codec(write_series(tmp_path / "in"))
    fault = fault_of(dicom(folder, tmp_path / "raw"))
    assert "IM0_129: the voxels cannot be decoded" in fault and "0x" not in fault, (
        "no memory address, which differs each time"
    )
    (tmp_path / "in" / "cut").write_bytes(b"\0" * 128 + b"DICM" + b"\x02\x00\x00\x00UL")
    manifest = dicom(folder, tmp_path / "raw")
    assert len(manifest) == 1 and not [note for note in manifest.notes if "Traceback" in note]


def test_series_in_one_folder_are_distinguished_and_other_files_are_counted(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_series(root / "mixed", uid="1.2.1", Modality="CT")
    write_series(
        root / "mixed",
        VOXELS + 1,
        uid="1.2.2",
        Modality="MR",
        StudyInstanceUID="1.2.88",
        StudyDate="20200301",
    )
    write_series(root / "mixed", VOXELS[:1], uid="1.2.3")
    write_series(root / "mixed", uid="1.2.4", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_slice(root / "mixed" / "capture", VOXELS[0], Modality="SC", PatientID="007")
    write_slice(root / "mixed" / "DICOMDIR", VOXELS[0], sop_class="1.2.840.10008.1.3.10")
    (root / "report.txt").write_text("no DICOM")
    manifest = dicom(root, tmp_path / "raw")
    table = manifest.table.set_index("modality")
    assert set(table.index) == {"CT", "MR"} and set(table["patient"]) == {"007"}
    assert table.loc["MR", "session"] == "2" and table.loc["MR", "session_days"] == str(
        (date(2020, 3, 1) - date(2020, 1, 31)).days
    )
    notes = " ".join(manifest.notes)
    for note in (
        "2 files are not DICOM",
        "1 files of SC have no voxels",
        "1 localizers",
        "1 series of fewer than 3 slices",
    ):
        assert note in notes, note
    assert set(dicom(root, tmp_path / "raw", modalities=("MR",)).table["modality"]) == {"MR"}
    with pytest.raises(DataError, match=r"no DICOM series; .*series of CT were skipped"):
        dicom(root, tmp_path / "raw", modalities=("PET",))


def test_two_people_with_one_id_and_one_person_in_two_folders(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_series(root / "a", uid="1.2.1", PatientID="1", PatientSex="F")
    # The same UID too, after faulty anonymisation.
    write_series(root / "b", uid="1.2.1", PatientID="1", PatientSex="M")
    write_series(root / "c", uid="1.2.3", PatientID="2")
    write_series(root / "d", uid="1.2.4", PatientID="2")
    write_series(root / "e", uid="1.2.5", PatientID="")
    manifest = dicom(root, tmp_path / "raw")
    assert sorted(manifest.table["patient"]) == ["1@a", "1@b", "2", "2", "e"] and not manifest.faults
    notes = " ".join(manifest.notes)
    assert "PatientID 1 is shared by several people" in notes and "patient 2 is in 2 folders (c, d)" in notes
    assert sorted(dicom(root, tmp_path / "raw", patients="folder").table["patient"]) == [
        "a",
        "b",
        "c",
        "d",
        "e",
    ]


def test_placeholder_patient_ids_are_replaced_by_folders(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for number, patient in enumerate(("None", "NaN", "1.23457E+11", "1.23457E+11", "007", "7")):
        write_series(root / f"f{number}", uid=f"1.2.{number}", PatientID=patient)
    plain = dicom(root, tmp_path / "raw")
    assert sorted(plain.table["patient"]) == ["007", "7", "f0", "f1", "f2", "f3"]
    assert any(
        note.startswith("4 series have a placeholder or truncated number as PatientID")
        for note in plain.notes
    )
    assert any(
        "1 groups of patient ids differ only in spelling" in note and "007 in" in note for note in plain.notes
    )
    hashed = dicom(root, tmp_path / "hashed", hash_ids=True)
    assert hashed.table["patient"].nunique() == 6
    assert [note for note in hashed.notes if "spelling" in note] == [
        "1 groups of patient ids differ only in spelling and may be one person; use one spelling per id"
    ]


def test_names_are_never_written_and_hash_ids_hides_all_ids(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_series(root / "DOE_JANE", PatientID="SECRET1", SeriesDescription="for Doe")
    shutil.copy(root / "DOE_JANE" / "IM4_129", root / "DOE_JANE" / "IM_DOE")  # a warning that names files
    write_series(
        root / "DOE_JOHN", uid="1.2.6", change=shifted(3, 3), PatientID="SECRET2", SeriesDescription="for Doe"
    )
    write_series(root / "DOE_ANN", uid="1.2.61", PatientID="SECRET3", RescaleType="DOE")
    write_series(root / "DOE_PET", uid="1.2.62", Modality="PT", Units="DOE", PatientID="SECRET3")
    write_series(
        root / "DOE_TWO",
        np.concatenate([VOXELS, VOXELS]),
        uid="1.2.63",
        PatientID="SECRET3",
        change=twice("DOE"),
    )
    spoil(write_series(root / "DOE_BAD", uid="1.2.64") / "IM4_1264", "RescaleSlope", "DS", b"DOE ")
    unknown_codec(write_series(root / "DOE_CODEC", uid="1.2.65"))
    write_slice(root / "DOE_SC", VOXELS[0], Modality="SC^DOE")
    (root / "IM_DOE").write_bytes(b"\0" * 128 + b"DICM" + b"\x02\x00\x00\x00UL")
    plain = dicom(root, tmp_path / "plain")
    assert "Jane" not in plain.table.to_csv() and "SECRET1" in plain.table.to_csv() and len(plain.faults) == 5
    hidden = dicom(root, tmp_path / "raw", hash_ids=True)
    written = "".join(
        path.name + path.read_text() for path in (tmp_path / "raw").iterdir() if path.suffix == ".json"
    )
    everything = hidden.table.to_csv() + str(hidden.faults) + str(hidden.notes) + written
    for text in ("DOE", "Doe", "SECRET", "1.2.6", "1.2.7", "20200131", "IM"):
        assert text not in everything, text
    assert (
        "1 slices are missing between file" in everything
        and "one copy skipped: file" in written
        and len(hidden.faults) == 5
    )
    assert hidden.table["patient"].nunique() == 4
    assert dicom(root, tmp_path / "raw", hash_ids=True).table.equals(hidden.table)
    assert (tmp_path / "raw" / ".hash_key").stat().st_mode & 0o777 == 0o600
    assert set(dicom(root, tmp_path / "other", hash_ids=True).table["patient"]).isdisjoint(
        hidden.table["patient"]
    )


def twice(text: str) -> Callable[[int], dict[str, Any]]:
    """Ten slices at five positions, the later ones of another ImageType."""
    return lambda n: {
        "ImagePositionPatient": [10.0, 20.0, 30.0 + 3 * (n % 5)],
        "ImageType": ["ORIGINAL", "PRIMARY", text if n > 4 else "M"],
        "SOPInstanceUID": f"1.2.63.{n}",
    }


def frames_of(count: int) -> list[Any]:
    """Frames from the last position to the first, each with its own slope."""
    return [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[1.0, 2.0, 3.0 + 4 * (4 - n)])],
            PixelValueTransformationSequence=[item(RescaleSlope=1 + n, RescaleIntercept=n)],
        )
        for n in range(count)
    ]


def test_frames_of_one_file_are_slices(tmp_path: Path) -> None:
    write_frames(tmp_path / "in" / "a", VOXELS, frames_of(5))
    voxels, affine = the_only(dicom(tmp_path / "in", tmp_path / "raw"))
    for n in range(5):
        np.testing.assert_array_equal(voxels[..., 4 - n], VOXELS[n].T * (1 + n) + n)
    np.testing.assert_allclose(affine, [[-1.5, 0, 0, -1], [0, -2, 0, -2], [0, 0, 4, 3], [0, 0, 0, 1]])


@pytest.mark.parametrize("positions", [4, 6])
def test_frames_and_positions_of_different_number_are_refused(tmp_path: Path, positions: int) -> None:
    write_frames(tmp_path / "in" / "a", VOXELS, frames_of(positions))
    assert f"a: NumberOfFrames is 5, but {positions} have a position" in fault_of(
        dicom(tmp_path / "in", tmp_path / "raw")
    )


def test_prepare_reports_a_refused_series_and_resumes(tmp_path: Path) -> None:
    root = tmp_path / "in"
    rng = np.random.default_rng(0)
    for number in range(3):
        voxels = rng.integers(0, 1000, (5, *SHAPE)).astype(np.int16)
        write_series(
            root / f"p{number}",
            voxels,
            uid=f"1.2.{number}",
            PatientID=f"00{number}",
            change=shifted(3, 3) if number == 2 else None,
        )
    out = tmp_path / "out"
    result = prepare("dicom", root, out, options=PrepareOptions(workers=1))
    assert (result.num_ok, result.num_refused) == (2, 1)
    report = pd.read_csv(out / "report.csv", dtype=str, keep_default_na=False).set_index("patient")
    assert report.loc["002", "status"] == "refused" and "slices are missing" in report.loc["002", "reason"]
    assert set(Store.open(out).collection.table["patient"]) == {"000", "001"}
    assert prepare("dicom", root, out, options=PrepareOptions(workers=1)).num_unchanged == 2
    assert json.loads((out / "prepared.json").read_text())["source"]["root"] == str(root)


def test_a_folder_of_refused_series_is_reused_and_removed_series_leave_no_files(tmp_path: Path) -> None:
    voxels, out = (
        np.random.default_rng(0).integers(0, 1000, (2, 5, *SHAPE)).astype(np.int16),
        tmp_path / "out",
    )
    write_series(tmp_path / "bad" / "p0", voxels[0], uid="1.2.0", PatientID="000", change=shifted(3, 3))
    for _ in range(2):
        with pytest.raises(DataError, match="no scan is left"):
            prepare("dicom", tmp_path / "bad", out, options=PrepareOptions(workers=1))
    out = tmp_path / "good_out"
    for number in (0, 1):
        write_series(
            tmp_path / "good" / f"p{number}", voxels[number], uid=f"1.3.{number}", PatientID=f"00{number}"
        )
    prepare("dicom", tmp_path / "good", out, options=PrepareOptions(workers=1))
    made = sorted(path.name for path in (out / "raw").rglob("*.*"))
    shutil.rmtree(tmp_path / "good" / "p1")
    assert prepare("dicom", tmp_path / "good", out, options=PrepareOptions(workers=1)).num_unchanged == 1
    left = sorted(path.name for path in (out / "raw").rglob("*.*"))
    assert len(made) == 4 and len(left) == 2 and set(left) < set(made)


def test_a_real_series_has_the_geometry_and_hu_of_simpleitk_and_the_grid_of_its_labels(
    real: Path, tmp_path: Path
) -> None:
    import SimpleITK as sitk

    manifest = dicom(real / "ct" / "dicom_series", tmp_path / "raw")
    voxels, affine = the_only(manifest)
    files = sorted((real / "ct" / "dicom_series").iterdir())
    ordered, warnings = sorted_slices([one for path in files for one in slices_of(read_header(path))])
    theirs = sitk.ReadImage([str(one.header.path) for one in ordered])
    np.testing.assert_array_equal(voxels, sitk.GetArrayFromImage(theirs).transpose(2, 1, 0))
    assert voxels.min() >= -1024 and 20 < np.median(voxels[voxels > -200]) < 80, "soft tissue in HU"
    for corner in ((0, 0, 0), (511, 0, 19), (0, 511, 3)):
        lps = np.array(theirs.TransformIndexToPhysicalPoint(corner))
        np.testing.assert_allclose((affine @ [*corner, 1])[:3], lps * [-1, -1, 1], atol=1e-3)
    np.testing.assert_allclose(affine_of(ordered), affine, atol=1e-4)
    assert not warnings and manifest.table["patient"].tolist() == ["dicom_series"], (
        "its ids are empty: the folder is the patient"
    )
    # The labels are reversed along one axis: the same grid in the world.
    label = nibabel.as_closest_canonical(nibabel.load(real / "ct/labels/dicom_series.nii.gz"))
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(voxels, affine))
    assert label.shape == image.shape
    np.testing.assert_allclose(label.affine, image.affine, atol=1e-3)
    nibabel.save(label, tmp_path / "label.nii.gz")
    nibabel.save(image, tmp_path / "image.nii.gz")
    found = read_label(tmp_path / "label.nii.gz", read_image(tmp_path / "image.nii.gz")).voxels[0]
    assert (found > 0).any() and np.median(np.asarray(image.dataobj)[found > 0]) > -100
    assert read_header(files[0]).text("MediaStorageSOPClassUID") == CT
