"""The table that is proposed for a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medcl3d.core.errors import DataError
from medcl3d.proposal.scan_table import propose_table
from tests.proposal.conftest import grey, label_map


def test_a_mixed_folder_becomes_one_table(scans: Path) -> None:
    made = propose_table(scans)
    table = made.table.set_index("path")
    assert len(table) == 20 and len(made.grids) == 20
    first = table.loc["Köpfe/Müller, Hans/2019-01-31/T1.nii.gz"]
    assert first[["patient", "session", "session_days", "modality", "label"]].tolist() == [
        "Müller, Hans", "2019-01-31", "2019-01-31", "T1", "",
    ]  # fmt: skip
    assert (
        table.loc["Köpfe/O'Neill/2020-02-28/T1.nii.gz", "label"] == "Köpfe/O'Neill/2020-02-28/T1 Maske.nii.gz"
    )
    assert table.loc["Köpfe/O'Neill/2020-02-28/FLAIR.nii.gz", "label"] == ""
    assert table.loc["CT Bäuche/leber_slab_ct.nii.gz", ["patient", "modality", "label"]].tolist() == [
        "leber_slab", "CT", "CT Bäuche/Masken/leber_slab_ct.nii.gz",
    ]  # fmt: skip
    assert table.loc["CT Export/Serie 7", ["patient", "session", "modality", "label"]].tolist() == [
        "4711", "2020-01-31", "CT", "CT Export/Serie 7 seg.nii.gz",
    ]  # fmt: skip
    assert "series" not in table, "the folder has one series"


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1)], ids=["RAS", "LPS, as SimpleITK writes"])
def test_scans_whose_headers_lost_their_position_share_no_frame(
    tmp_path: Path, write_nifti, signs: tuple[int, int, int]
) -> None:
    for name in ("T1", "T2"):
        write_nifti(f"heads/P1/{name}.nii.gz", grey(len(name)), np.diag([*signs, 1.0]))
    assert "frame" not in propose_table(tmp_path / "heads").table, "an empty column is left out"


def test_scans_of_one_session_and_grid_share_a_frame(scans: Path) -> None:
    frames = propose_table(scans).table.set_index("path")["frame"]
    of_visit = frames[frames.index.str.contains("Eva/2019")]
    assert of_visit.nunique() == 1 and of_visit.iloc[0] == "Schmidt Eva/2019-01-31/grid 1"
    assert frames[frames.index.str.contains("Eva/2020")].nunique() == 1
    assert frames["CT Export/Serie 7"] == "4711/1.2.7"
    assert (frames[frames.index.str.startswith("CT Bäuche")] == "").all()


def test_values_decide_where_names_do_not(tmp_path: Path, write_nifti) -> None:
    many = np.zeros((24, 20, 16), dtype=np.int16)
    many[2:20, 2:18, 2:14] = np.arange(18)[:, None, None] + np.arange(16)[:, None]
    for number in (1, 2, 3):
        write_nifti(f"p{number}/ct.nii.gz", grey(number))
        write_nifti(f"p{number}/organs_seg.nii.gz", many)  # more values than label_warnings allows
        write_nifti(f"p{number}/unknown.nii.gz", label_map())
        write_nifti(f"p{number}/t1_mask.nii.gz", grey(number) / 7)
    made = propose_table(tmp_path)
    assert sorted(set(made.table["path"].str.rpartition("/")[2])) == ["ct.nii.gz", "t1_mask.nii.gz"]
    notes = "\n".join(made.notes)
    assert "3 files are named as label maps but hold grey values: images (p1/t1_mask.nii.gz" in notes
    assert "3 files hold a few whole numbers only: label maps, not images (p1/unknown.nii.gz" in notes


def test_label_maps_without_an_image_and_damaged_files_are_reported(tmp_path: Path, write_nifti) -> None:
    write_nifti("img/a_1.nii.gz", grey(1))
    write_nifti("img/a_2.nii.gz", grey(2))
    write_nifti("seg/a_1.nii.gz", label_map())
    write_nifti("seg/a_3.nii.gz", label_map())
    write_nifti("seg/a_2.nii.gz", label_map((24, 20, 15)))
    (tmp_path / "img/a_4.nii.gz").write_bytes(b"")
    made = propose_table(tmp_path)
    assert made.table["label"].tolist() == ["seg/a_1.nii.gz", ""]
    notes = "\n".join(made.notes)
    assert (
        "2 label maps have no image of their name and grid and are left out (seg/a_2.nii.gz, seg/a_3" in notes
    )
    assert (
        "1 NIfTI files cannot be read and are left out" in notes and "a_4.nii.gz: the file is empty" in notes
    )


def test_one_patient_id_in_two_folders_is_one_patient(tmp_path: Path, write_nifti) -> None:
    from tests.datasets.dicoms import write_series

    for name in ("Patient 1", "Patient 2"):
        write_nifti(f"{name}/T1.nii.gz", grey(1))
        write_series(tmp_path / name / "DICOM", grey(2, (5, 7, 6)), uid=f"1.2.{name[-1]}", PatientID="9")
    made = propose_table(tmp_path)
    assert set(made.table["patient"]) == {"Patient 1"}
    assert any(
        "1 PatientIDs are in the folders of several patients, who were joined" in one for one in made.notes
    )


def test_several_series_of_a_folder_are_distinguished(tmp_path: Path, write_nifti) -> None:
    from medcl3d.datasets.sources.csv import csv
    from tests.datasets.dicoms import write_series

    write_nifti("P1/T1.nii.gz", grey(1))
    for uid in ("1.2.3", "1.2.4"):
        write_series(tmp_path / "P2", grey(2, (5, 7, 6)), uid=uid)
    table = propose_table(tmp_path).table
    assert table["series"].tolist() == ["", "1.2.3", "1.2.4"] and table["path"].tolist()[1:] == ["P2", "P2"]
    table.to_csv(tmp_path / "scans.csv", index=False)
    assert len(csv(tmp_path / "scans.csv").unwritten) == 2


def test_a_folder_of_label_maps_alone_has_no_scan(tmp_path: Path, write_nifti) -> None:
    write_nifti("a/p1_seg.nii.gz", label_map())
    with pytest.raises(DataError, match="all 1 NIfTI files are label maps"):
        propose_table(tmp_path)
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="no NIfTI file and no DICOM series; the folder is empty"):
        propose_table(tmp_path / "b")
