"""The dry run of prepare reports what would be done and writes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from typer.testing import Result

from medcl3d.io import disk_space as room
from tests.datasets.test_medmnist import write as write_npz
from tests.faults.build import good, nifti, table
from tests.test_cli import medcl3d

GRID = (20, 24, 12)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, which a dry run does not change."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def checked(here: Path, *arguments: object) -> Result:
    """Run a command with --check and assert that it writes nothing."""
    before = sorted(here.rglob("*"))
    done = medcl3d(*arguments, "--check")
    assert sorted(here.rglob("*")) == before and "Traceback" not in done.output
    return done


def scans(folder: Path, num: int = 8, spacing: float = 1.0) -> None:
    rng = np.random.default_rng(0)
    rows = ["scan,patient,modality,path,label"]
    for i in range(num):
        for name, voxels in (("i", rng.normal(100, 20, GRID)), ("l", rng.integers(0, 2, GRID))):
            nibabel.save(
                nibabel.Nifti1Image(voxels.astype(np.int16), np.diag([spacing, spacing, 2.0, 1])),
                folder / f"{name}{i}.nii.gz",
            )
        rows.append(f"s{i},p{i // 2},{'CT' if i % 2 else 'MR'},i{i}.nii.gz,l{i}.nii.gz")
    table(folder, "\n".join(rows) + "\n")


@pytest.mark.parametrize(
    "options", [(), ("spacing_mm=[2,2,2]",), ("assume_spacing_mm=[1,1,4]", "spacing_mm=[2,2,2]")]
)
def test_the_dry_run_predicts_what_prepare_does(here: Path, options: tuple[str, ...]) -> None:
    scans(here)
    done = checked(here, "prepare", "csv", here, "--out", here / "out", "workers=1", *options)
    assert done.exit_code == 0, done.output
    assert (
        "8 scans of 4 patients, 8 with a label map" in done.output
        and "CT as ct: 4, MR as mri: 4" in done.output
    )
    assert (
        "3 train, 1 test" in done.output
        and "8 scans would be prepared" in done.output
        and "workers=1" in done.output
    )
    assert medcl3d("prepare", "csv", here, "--out", here / "out", "workers=1", *options).exit_code == 0
    size = sum(path.stat().st_size - 128 for path in (here / "out" / "store").glob("*.npy"))
    assert f"would take about {size / 1000:.3g} kB" in done.output, size
    again = checked(here, "prepare", "csv", here, "--out", here / "out", "workers=1", *options)
    assert again.exit_code == 0 and "are not prepared again" in again.output


def test_missing_files_and_bad_headers_are_counted_as_prepare_counts_them(here: Path) -> None:
    good(here, tail=["x,x,gone.nii.gz"])
    done = checked(here, "prepare", "csv", ".", "--out", "out")
    assert (
        done.exit_code == 0
        and "1 files of the manifest are missing" in done.output
        and "3 scans would be prepared" in done.output
    )
    nifti(here / "a.nii.gz", datatype=9999)
    done = checked(here, "prepare", "csv", ".", "--out", "out")
    assert done.exit_code == 3 and "2 of 4 scans would be refused, 1 may be" in done.output
    assert checked(here, "prepare", "csv", ".", "--out", "out", "max_bad_fraction=0.5").exit_code == 0


def test_a_fourth_axis_is_counted_as_prepare_counts_it(here: Path) -> None:
    good(here)
    nibabel.save(
        nibabel.Nifti1Image(np.random.default_rng(3).normal(size=(*GRID, 2)).astype(np.float32), np.eye(4)),
        here / "a.nii.gz",
    )
    done = checked(here, "prepare", "csv", ".", "--out", "out")
    assert "a.nii.gz: 4-D" in done.output and "1 refused" in done.output
    assert " 0 refused" in checked(here, "prepare", "csv", ".", "--out", "out", "channels=first").output


def test_a_patient_on_both_sides_is_found(here: Path) -> None:
    good(here, ["a,p,train", "b,p,test", "c,q,train"], "scan,patient,split")
    done = checked(here, "prepare", "csv", ".", "--out", "out")
    assert done.exit_code == 3 and "1 patients are in train and in test: p" in done.output


def test_a_full_disk_and_an_unwritable_folder_are_reported(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good(here)
    assert checked(here, "prepare", "csv", ".", "--out", "/proc/out").exit_code == 4
    monkeypatch.setattr("medcl3d.preprocessing.dry_run.free_bytes", lambda _: 100)
    done = checked(here, "prepare", "csv", ".", "--out", "out")
    assert done.exit_code == 4 and "4.32 kB are needed, 100 bytes are free" in done.output
    assert checked(here, "prepare", "csv", ".", "--out", "out", "crop=body").exit_code == 0, (
        "the size of the body is unknown"
    )
    assert room.free_bytes(here) > 100


def test_sources_that_write_scans_do_not_write_any(here: Path) -> None:
    done = checked(here, "prepare", "simulated", "-", "--out", "out", "num_patients=5", "shape=[32,32,32]")
    assert done.exit_code == 0, done.output
    assert (
        medcl3d(
            "prepare", "simulated", "-", "--out", "out", "num_patients=5", "shape=[32,32,32]", "workers=1"
        ).exit_code
        == 0
    )
    num = len((here / "out" / "manifest.csv").read_text().splitlines()) - 1
    assert (
        f"{num} scans of 5 patients, {num} with a label map" in done.output
        and f"{num} scans would be prepared" in done.output
    )
    write_npz(here / "set.npz")
    done = checked(here, "prepare", "medmnist", "set.npz", "--out", "new")
    assert done.exit_code == 0 and "each sample counts as its own patient" in done.output, done.output


def test_series_are_validated_and_not_written(here: Path) -> None:
    pytest.importorskip("pydicom")
    from tests.datasets.dicoms import VOXELS, write_series
    from tests.faults.build import shifted

    for patient in range(4):
        write_series(here / "in" / str(patient), VOXELS, uid=f"1.2.{patient}", PatientID=str(patient))
    write_series(here / "in" / "gap", VOXELS, uid="1.2.9", PatientID="9", change=shifted(3.0))
    done = checked(here, "prepare", "dicom", "in", "--out", "out", "hash_ids=true")
    assert done.exit_code == 0, done.output
    assert (
        "5 scans of 5 patients" in done.output
        and "missing" in done.output
        and "4 scans would be prepared" in done.output
    )


def test_each_volume_of_a_file_is_a_scan_and_names_are_redacted(here: Path) -> None:
    voxels = np.random.default_rng(0).normal(100, 20, (*GRID, 3)).astype(np.int16)
    for name in ("doe", "roe", "poe"):
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), here / f"{name}.nii.gz")
        voxels = voxels + 1
    (here / "zoe.nii.gz").write_bytes(b"cut")
    command = ("prepare", "folder", ".", "--out", "out", "pattern={patient}.nii.gz", "channels=split")
    done = checked(here, *command)
    assert (
        done.exit_code == 0
        and "10 scans of 4 patients" in done.output
        and "9 scans would be prepared" in done.output
    )
    assert "zoe" in done.output and "zoe" not in checked(here, *command, "hash_ids=true").output
    table(here, "scan,patient,path\ndoe,doe,doe.nii.gz\nzoe,zoe,gone.nii.gz\n")
    done = checked(here, "prepare", "csv", ".", "--out", "out", "hash_ids=true", "channels=all")
    assert (
        done.exit_code == 0
        and "1 files of the manifest are missing" in done.output
        and "gone" not in done.output
    ), done.output


def test_check_refuses_bad_arguments_before_it_reads(here: Path) -> None:
    assert medcl3d("check", ".", "--report", "/proc/x").exit_code == 4
    assert medcl3d("check", "none").exit_code == 3
    assert medcl3d("check", ".", "--nonfinite", "maybe").exit_code == 2
