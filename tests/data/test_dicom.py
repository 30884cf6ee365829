from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest

from medcl3d.data.check import read_image, read_label
from medcl3d.data.dicom_series import affine_of, in_order, read_header, slices_of
from medcl3d.data.manifest import Manifest
from medcl3d.data.options import PrepareOptions
from medcl3d.data.prepare import prepare
from medcl3d.data.sources.dicom import dicom
from medcl3d.data.store import Store
from medcl3d.errors import DataError
from tests.data.dicoms import CT, ENHANCED_MR, SHAPE, VOXELS, pydicom, write_series, write_slice


def the_only(manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    assert len(manifest) == 1 and not manifest.faults, manifest.faults
    image = nibabel.load(manifest.locate(manifest.table["path"].iloc[0]))
    return np.asarray(image.dataobj), image.affine


def fault_of(manifest: Manifest) -> str:
    (fault,) = manifest.faults.values()
    assert "\n" not in fault
    return fault


def test_a_series_is_ordered_by_place_and_comes_in_hu(tmp_path: Path) -> None:
    manifest = dicom(write_series(tmp_path / "in" / "p1" / "a"), tmp_path / "raw")
    voxels, affine = the_only(manifest)
    np.testing.assert_array_equal(voxels, VOXELS.transpose(2, 1, 0) * 2 - 100)
    np.testing.assert_allclose(affine, [[-1.5, 0, 0, -10], [0, -2, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]])
    row = manifest.table.iloc[0]
    assert (row["patient"], row["session"], row["session_days"], row["modality"], row["frame"]) == ("007", "1", "0", "CT", "007/1.2.7")
    assert (row["study_date"], row["study"], row["series"]) == ("20200131", "1.2.8", "1.2.9")


def test_an_oblique_series_that_runs_the_other_way_lies_where_it_was(tmp_path: Path) -> None:
    """The world position of every voxel, from the standard's own formula (PS3.3 C.7.6.2.1.1)."""
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
        assert np.allclose(index, np.round(index), atol=1e-3) and found == VOXELS[number, row, column] * 2 - 100


def shifted(at: int, mm: float) -> Callable[[int], dict[str, Any]]:
    return lambda n: {"ImagePositionPatient": [10.0, 20.0, 30.0 + 3 * n + (mm if n >= at else 0)]}


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"change": shifted(3, 3)}, "1 slices are missing between IM4_129 and IM1_129: 6 mm, elsewhere 3 mm"),
        ({"change": shifted(3, 0.5)}, "unevenly spaced: 3.5 mm between"),
        ({"change": shifted(3, -3)}, "lie at one place: a time series"),
        ({"change": lambda n: {"ImagePositionPatient": [10.0, 20.0 + n, 30.0 + 3 * n]}}, "the gantry is tilted"),
        ({"change": lambda n: {"ImageOrientationPatient": [1, 0, 0, 0, 0, 1]} if n == 2 else {}}, "the orientation varies"),
        ({"change": lambda n: {"PixelSpacing": [1, 1]} if n == 2 else {}}, "they are no one volume"),
        ({"RescaleSlope": None}, "a CT without RescaleSlope"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "holds MONOCHROME1"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "no pair of orthogonal directions"),
        ({"PixelSpacing": None}, "PixelSpacing is missing"),
        ({"NumberOfFrames": 2}, "has several frames and no place for each"),
    ],
)
def test_what_is_no_regular_grid_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], fault: str) -> None:
    manifest = dicom(write_series(tmp_path / "in" / "p1", **fields), tmp_path / "raw")
    assert fault in fault_of(manifest) and "p1: series 1.2.9" in fault_of(manifest)


def test_the_same_slice_twice_is_left_out_and_said(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "in")
    shutil.copy(folder / "IM4_129", folder / "copy")
    manifest = dicom(folder, tmp_path / "raw")
    assert the_only(manifest)[0].shape == (6, 7, 5)
    assert "the same slice twice, once left out: copy" in " ".join(manifest.notes) or "once left out: IM4_129" in " ".join(manifest.notes)


def test_an_unknown_codec_and_cut_files_are_refused(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "in")
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG2, which no reader takes for slices
        dataset.PixelData = pydicom.encaps.encapsulate([dataset.PixelData])
        dataset["PixelData"].VR = "OB"
        dataset.save_as(path)
    assert "cannot be decoded" in fault_of(dicom(folder, tmp_path / "raw"))
    (tmp_path / "in" / "cut").write_bytes(b"\0" * 128 + b"DICM" + b"\x02\x00\x00\x00UL")
    manifest = dicom(folder, tmp_path / "raw")
    assert len(manifest) == 1 and not [note for note in manifest.notes if "Traceback" in note]


def test_series_in_one_folder_are_told_apart_and_what_is_no_scan_is_counted(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_series(root / "mixed", uid="1.2.1", Modality="CT")
    write_series(root / "mixed", VOXELS + 1, uid="1.2.2", Modality="MR", StudyInstanceUID="1.2.88", StudyDate="20200301")
    write_series(root / "mixed", VOXELS[:1], uid="1.2.3")
    write_series(root / "mixed", uid="1.2.4", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_slice(root / "mixed" / "capture", VOXELS[0], Modality="SC", PatientID="007")
    write_slice(root / "mixed" / "DICOMDIR", VOXELS[0], sop_class="1.2.840.10008.1.3.10")
    (root / "report.txt").write_text("no DICOM")
    manifest = dicom(root, tmp_path / "raw")
    table = manifest.table.set_index("modality")
    assert set(table.index) == {"CT", "MR"} and set(table["patient"]) == {"007"}
    assert table.loc["MR", "session"] == "2" and table.loc["MR", "session_days"] == str((date(2020, 3, 1) - date(2020, 1, 31)).days)
    notes = " ".join(manifest.notes)
    for said in ("2 files are no DICOM", "1 files of SC have no voxels", "1 localizers", "1 series of fewer than 3 slices"):
        assert said in notes, said
    assert set(dicom(root, tmp_path / "raw", modalities=("MR",)).table["modality"]) == {"MR"}
    with pytest.raises(DataError, match=r"no DICOM series there; .*series of CT were not taken"):
        dicom(root, tmp_path / "raw", modalities=("PET",))


def test_two_people_of_one_id_are_told_apart_and_one_person_in_two_folders_is_one(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_series(root / "a", uid="1.2.1", PatientID="1", PatientSex="F")
    write_series(root / "b", uid="1.2.1", PatientID="1", PatientSex="M")  # even the UID is one, after careless anonymisation
    write_series(root / "c", uid="1.2.3", PatientID="2")
    write_series(root / "d", uid="1.2.4", PatientID="2")
    write_series(root / "e", uid="1.2.5", PatientID="")
    manifest = dicom(root, tmp_path / "raw")
    assert sorted(manifest.table["patient"]) == ["1@a", "1@b", "2", "2", "e"] and not manifest.faults
    notes = " ".join(manifest.notes)
    assert "PatientID 1 is claimed by several people" in notes and "patient 2 lies in 2 folders (c, d)" in notes
    assert sorted(dicom(root, tmp_path / "raw", patients="folder").table["patient"]) == ["a", "b", "c", "d", "e"]


def test_names_are_never_written_and_ids_are_hashed_on_request(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_series(root / "DOE_JANE", PatientID="SECRET1")
    write_series(root / "DOE_JOHN", uid="1.2.6", change=shifted(3, 3), PatientID="SECRET2", SeriesDescription="for Doe")
    plain = dicom(root, tmp_path / "plain")
    assert "Jane" not in plain.table.to_csv() and "SECRET1" in plain.table.to_csv()
    hidden = dicom(root, tmp_path / "raw", hash_ids=True)
    everything = hidden.table.to_csv() + str(hidden.faults) + str(hidden.notes) + "".join(p.name for p in (tmp_path / "raw").iterdir())
    for text in ("DOE", "Doe", "SECRET", "1.2.6", "1.2.7", "20200131", "IM"):
        assert text not in everything, text
    assert "1 slices are missing between file" in everything
    assert hidden.table["patient"].nunique() == 2
    assert dicom(root, tmp_path / "raw", hash_ids=True).table.equals(hidden.table)
    assert (tmp_path / "raw" / ".hash_key").stat().st_mode & 0o777 == 0o600
    assert set(dicom(root, tmp_path / "other", hash_ids=True).table["patient"]).isdisjoint(hidden.table["patient"])


PET: dict[str, Any] = {
    "Modality": "PT", "Units": "BQML", "CorrectedImage": ["ATTN", "DECY"], "DecayCorrection": "START", "PatientWeight": 80,
    "SeriesDate": "20200131", "SeriesTime": "100000.0", "AcquisitionDate": "20200131", "AcquisitionTime": "100010",
}  # fmt: skip


def injection(**fields: Any) -> list[Any]:
    dataset = pydicom.Dataset()
    for name, value in {
        "RadionuclideTotalDose": 4e8, "RadionuclideHalfLife": 6586.2, "RadiopharmaceuticalStartTime": "090000", **fields
    }.items():  # fmt: skip
        setattr(dataset, name, value)
    return [dataset]


def test_pet_comes_in_suv_where_the_headers_allow_it(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "in", RadiopharmaceuticalInformationSequence=injection(), **PET)
    voxels, _ = the_only(dicom(folder, tmp_path / "raw"))
    expected = (VOXELS.transpose(2, 1, 0) * 2.0 - 100) * 80_000 / (4e8 * 0.5 ** (3600 / 6586.2))
    np.testing.assert_allclose(voxels, expected, rtol=1e-6)
    manifest = dicom(folder, tmp_path / "raw", pet="raw")
    np.testing.assert_array_equal(the_only(manifest)[0], VOXELS.transpose(2, 1, 0) * 2 - 100)
    assert "stored units" in " ".join(manifest.notes) and manifest.table["modality"].tolist() == ["PET"]


@pytest.mark.parametrize(
    ("fields", "dose", "what"),
    [
        ({"Units": "CNTS"}, {}, "Units are CNTS"),
        ({"PatientWeight": None}, {}, "PatientWeight is 0 kg"),
        ({"PatientWeight": 80_000}, {}, "PatientWeight is 80000 kg"),
        ({"CorrectedImage": ["DECY"]}, {}, "CorrectedImage lacks ATTN"),
        ({"DecayCorrection": "NONE"}, {}, "DecayCorrection is 'NONE'"),
        ({"SeriesTime": "100500"}, {}, "SeriesTime"),
        ({"SeriesTime": None}, {}, "the times of injection"),
        ({}, {"RadionuclideTotalDose": 0}, "RadionuclideTotalDose is 0"),
    ],
)
def test_no_suv_is_guessed(tmp_path: Path, fields: dict[str, Any], dose: dict[str, Any], what: str) -> None:
    folder = write_series(tmp_path / "in", RadiopharmaceuticalInformationSequence=injection(**dose), **{**PET, **fields})
    fault = fault_of(dicom(folder, tmp_path / "raw"))
    assert what in fault and "pet=raw" in fault


def test_frames_of_one_file_are_slices(tmp_path: Path) -> None:
    def item(**fields: Any) -> Any:
        dataset = pydicom.Dataset()
        for name, value in fields.items():
            setattr(dataset, name, value)
        return dataset

    frames = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[1.0, 2.0, 3.0 + 4 * (4 - n)])],
            PixelValueTransformationSequence=[item(RescaleSlope=1 + n, RescaleIntercept=n)],
        )
        for n in range(5)
    ]
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])], PixelMeasuresSequence=[item(PixelSpacing=[2, 1.5])]
    )
    fields = {"PerFrameFunctionalGroupsSequence": frames, "SharedFunctionalGroupsSequence": [shared], "NumberOfFrames": 5}
    about = {"SeriesInstanceUID": "1.2.9", "SOPInstanceUID": "1.2.9.1", "Modality": "MR", "PatientID": "007"}
    write_slice(tmp_path / "in" / "a", VOXELS, sop_class=ENHANCED_MR, **fields, **about)
    voxels, affine = the_only(dicom(tmp_path / "in", tmp_path / "raw"))
    for n in range(5):
        np.testing.assert_array_equal(voxels[..., 4 - n], VOXELS[n].T * (1 + n) + n)
    np.testing.assert_allclose(affine, [[-1.5, 0, 0, -1], [0, -2, 0, -2], [0, 0, 4, 3], [0, 0, 0, 1]])


def test_preparing_reports_a_refused_series_and_does_nothing_twice(tmp_path: Path) -> None:
    root = tmp_path / "in"
    rng = np.random.default_rng(0)
    for number in range(3):
        voxels = rng.integers(0, 1000, (5, *SHAPE)).astype(np.int16)
        write_series(
            root / f"p{number}", voxels, uid=f"1.2.{number}", PatientID=f"00{number}", change=shifted(3, 3) if number == 2 else None
        )
    out = tmp_path / "out"
    result = prepare("dicom", root, out, options=PrepareOptions(workers=1))
    assert (result.num_ok, result.num_refused) == (2, 1)
    report = pd.read_csv(out / "report.csv", dtype=str, keep_default_na=False).set_index("patient")
    assert report.loc["002", "status"] == "refused" and "slices are missing" in report.loc["002", "reason"]
    assert set(Store.open(out).collection.table["patient"]) == {"000", "001"}
    assert prepare("dicom", root, out, options=PrepareOptions(workers=1)).num_there == 2
    assert json.loads((out / "prepared.json").read_text())["source"]["root"] == str(root)


def test_a_real_series_has_the_geometry_and_hu_of_simpleitk_and_the_grid_of_its_labels(real: Path, tmp_path: Path) -> None:
    import SimpleITK as sitk

    manifest = dicom(real / "ct" / "dicom_series", tmp_path / "raw")
    voxels, affine = the_only(manifest)
    files = sorted((real / "ct" / "dicom_series").iterdir())
    ordered, warnings = in_order([one for path in files for one in slices_of(path, read_header(path))])
    theirs = sitk.ReadImage([str(one.path) for one in ordered])
    np.testing.assert_array_equal(voxels, sitk.GetArrayFromImage(theirs).transpose(2, 1, 0))
    assert voxels.min() >= -1024 and 20 < np.median(voxels[voxels > -200]) < 80, "soft tissue in HU"
    for corner in ((0, 0, 0), (511, 0, 19), (0, 511, 3)):
        lps = np.array(theirs.TransformIndexToPhysicalPoint(corner))
        np.testing.assert_allclose((affine @ [*corner, 1])[:3], lps * [-1, -1, 1], atol=1e-3)
    np.testing.assert_allclose(affine_of(ordered), affine, atol=1e-4)
    assert not warnings and manifest.table["patient"].tolist() == ["dicom_series"], "its ids were emptied: the folder is the patient"
    # The labels run the other way along one axis: the same grid in the world.
    label = nibabel.as_closest_canonical(nibabel.load(real / "ct/labels/dicom_series.nii.gz"))
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(voxels, affine))
    assert label.shape == image.shape
    np.testing.assert_allclose(label.affine, image.affine, atol=1e-3)
    nibabel.save(label, tmp_path / "label.nii.gz")
    nibabel.save(image, tmp_path / "image.nii.gz")
    found = read_label(tmp_path / "label.nii.gz", read_image(tmp_path / "image.nii.gz")).voxels[0]
    assert (found > 0).any() and np.median(np.asarray(image.dataobj)[found > 0]) > -100
    assert str(read_header(files[0]).file_meta.MediaStorageSOPClassUID) == CT
