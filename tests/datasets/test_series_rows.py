"""A table with NIfTI files and folders of DICOM series becomes one store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medcl3d.core.errors import DataError
from medcl3d.datasets.sources.csv import csv
from medcl3d.preprocessing.dry_run import dry_run
from medcl3d.preprocessing.options import PrepareOptions
from medcl3d.preprocessing.prepare import prepare
from medcl3d.quality.check import audit
from medcl3d.store.store import Store
from tests.datasets.dicoms import write_series

NOISE = np.random.default_rng(0).integers(0, 1000, (5, 7, 6)).astype(np.int16)
OPTIONS = PrepareOptions(workers=1)


@pytest.fixture
def table(tmp_path: Path, write_nifti: Callable[..., Path]) -> Path:
    """A file of one patient, a series of another, and a folder with two series."""
    write_nifti("in/a.nii.gz", NOISE)
    write_series(tmp_path / "in/series 1", NOISE + 1, uid="1.2.1")
    write_series(tmp_path / "in/two", NOISE + 2, uid="1.2.2")
    write_series(
        tmp_path / "in/two", NOISE + 3, uid="1.2.3", Modality="MR", RescaleSlope=None, RescaleIntercept=None
    )
    rows = [
        "path,patient,series,modality",
        "a.nii.gz,p1,,CT",
        "series 1,p2,,",
        "two,p3,1.2.2,",
        "two,p3,1.2.3,T1",
    ]
    (tmp_path / "in/scans.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "in/scans.csv"


def test_files_and_series_become_one_store(table: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "out", list[str]()
    prepare("csv", table, out, options=OPTIONS, say=said.append)
    store = Store.open(out)
    rows = store.collection.table.set_index("scan")
    assert rows["patient"].to_dict() == {"a": "p1", "series 1": "p2", "two_1.2.2": "p3", "two_1.2.3": "p3"}
    assert rows["modality"].tolist() == ["CT", "CT", "CT", "T1"]
    assert rows["frame"].tolist() == ["a", "p2/1.2.7", "p3/1.2.7", "p3/1.2.7"]
    assert any("3 rows are DICOM series" in line for line in said)
    written = {path: path.stat().st_mtime_ns for path in (out / "raw").rglob("*.nii.gz")}
    assert len(written) == 3
    prepare("csv", table, out, options=OPTIONS)  # resumes: no series is written again
    assert {path: path.stat().st_mtime_ns for path in (out / "raw").rglob("*.nii.gz")} == written


def test_a_series_is_the_same_volume_as_in_the_source_dicom(table: Path, tmp_path: Path) -> None:
    prepare("csv", table, tmp_path / "csv", options=OPTIONS)
    prepare("dicom", table.parent / "series 1", tmp_path / "dicom", options=OPTIONS)
    one, other = Store.open(tmp_path / "csv"), Store.open(tmp_path / "dicom")
    hashes = {about["scan"]: about["voxels_sha256"] for about in one.scans}
    assert hashes["series 1"] == other.scans[0]["voxels_sha256"]


def test_hashed_ids_keep_the_converted_files(table: Path, tmp_path: Path) -> None:
    prepare("csv", table, tmp_path / "out", options=PrepareOptions(workers=1, hash_ids=True))
    links = [path for path in (tmp_path / "out/raw").glob("*") if path.is_symlink()]
    assert len(links) == 4 and all(link.exists() for link in links)
    assert "p2" not in (tmp_path / "out/manifest.csv").read_text()


def test_check_and_dry_run_write_nothing(table: Path, tmp_path: Path) -> None:
    before, said = sorted(table.parent.rglob("*")), list[str]()
    findings = audit(table, given={"workers": 1})
    assert [finding.fault for finding in findings] == [""] * 4
    dry_run("csv", table, tmp_path / "out", {}, OPTIONS, said.append)
    assert "4 scans would be prepared" in said[-1]
    assert sorted(table.parent.rglob("*")) == before and not (tmp_path / "out").exists()


def test_a_folder_with_several_series_needs_the_column_series(table: Path) -> None:
    table.write_text("path,patient\na.nii.gz,p1\ntwo,p3\n")
    with pytest.raises(
        DataError, match=r"scans.csv:3: the folder two has 2 DICOM series, and 2 fit this row"
    ) as error:
        csv(table)
    assert error.value.remedy == "choose one in the columns series and part: series=1.2.2, series=1.2.3"


@pytest.mark.parametrize(("path", "problem"), [("../else", "leaves the root"), ("empty", "no DICOM series")])
def test_a_folder_outside_or_without_a_series_is_refused(table: Path, path: str, problem: str) -> None:
    write_series(table.parent.parent / "else", NOISE)
    (table.parent / "empty").mkdir()
    table.write_text(f"path,patient\na.nii.gz,p1\n{path},p3\n")
    with pytest.raises(DataError, match=rf"scans.csv:3: .*{problem}"):
        csv(table)


def test_a_damaged_series_is_refused_and_the_others_are_read(table: Path) -> None:
    next((table.parent / "series 1").glob("IM4*")).unlink()
    made = csv(table)
    assert list(made.faults) == ["series 1"] and "1 slices are missing" in made.faults["series 1"]
    assert sorted(made.unwritten) == ["two_1.2.2", "two_1.2.3"]
