from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from medcl3d.core.errors import ConfigError, DataError, MachineError
from medcl3d.io.array_file import SUFFIXES
from medcl3d.preprocessing.dry_run import dry_run
from medcl3d.preprocessing.options import PrepareOptions
from medcl3d.preprocessing.prepare import prepare
from medcl3d.preprocessing.ready_scan import ReadyScan
from medcl3d.preprocessing.scan_task import ScanTask
from medcl3d.quality.check import audit
from medcl3d.store.splits import make_split, read_split
from medcl3d.store.store import Store

ONE = PrepareOptions(workers=1)


def blob_scan(
    affine: np.ndarray, shape: tuple[int, int, int], world_mm: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A bright sphere of 5 mm at a world position, on any grid, and its label."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    distance = np.linalg.norm(world - world_mm, axis=-1)
    return (100 * np.exp(-(distance**2) / (2 * 5.0**2))).astype(np.float32), (distance < 6).astype(np.uint8)


def centroid_mm(weights: np.ndarray, affine: np.ndarray) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, weights.shape), indexing="ij"), -1)
    return (index * weights[..., None]).sum((0, 1, 2)) / weights.sum() @ affine[:3, :3].T + affine[:3, 3]


@pytest.mark.parametrize("spacing", ["keep", (2.0, 1.5, 2.5)])
def test_a_landmark_keeps_its_world_position(tmp_path, write_nifti, spacing) -> None:
    landmark = np.array([12.0, -7.0, 20.0])
    tilt = np.radians(9)
    tilted = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    grids = {
        "ras": np.diag([1.5, 1.5, 1.5]),
        "lps": np.diag([-1.0, -1.2, 3.0]),
        "psr": np.array([[0, 0, 2.0], [-1.5, 0, 0], [0, 1.5, 0]]),
        "oblique": tilted * [1.2, 1.2, 2.4],
    }
    rows = ["scan,patient,path,label"]
    for name, axes in grids.items():
        affine = np.eye(4)
        affine[:3, :3] = axes
        affine[:3, 3] = landmark - axes @ np.array([24, 26, 17])
        image, label = blob_scan(affine, (50, 52, 36), landmark)
        write_nifti(f"{name}.nii.gz", image, affine)
        write_nifti(f"{name}_label.nii.gz", label, affine)
        rows.append(f"{name},{name},{name}.nii.gz,{name}_label.nii.gz")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    prepare(
        "csv",
        tmp_path,
        tmp_path / "out",
        options=PrepareOptions(workers=1, spacing_mm=spacing, intensity="none"),
    )
    store = Store.open(tmp_path / "out")
    for scan, name in enumerate(grids):
        affine = store.collection.affines[scan]
        assert nibabel.aff2axcodes(affine) == ("R", "A", "S"), name
        if spacing != "keep":
            np.testing.assert_allclose(store.collection.spacings[scan], spacing, rtol=1e-4)
        weights = store.read_volume(scan)[0].astype(float)
        np.testing.assert_allclose(
            centroid_mm(np.where(weights > 5, weights, 0), affine), landmark, atol=0.15, err_msg=name
        )
        # Nearest-neighbour resampling may move a label by half a voxel of its file.
        np.testing.assert_allclose(
            centroid_mm(store.read_label(scan).astype(float), affine), landmark, atol=0.55, err_msg=name
        )
        volume_mm3 = store.read_label(scan).sum() * abs(np.linalg.det(affine[:3, :3]))
        assert abs(volume_mm3 / (4 / 3 * np.pi * 6**3) - 1) < 0.15, name


def test_unresampled_scans_keep_their_values(cohort, tmp_path) -> None:
    prepare("csv", cohort, tmp_path / "out", options=PrepareOptions(workers=1, intensity="none"))
    store = Store.open(tmp_path / "out")
    original = np.asarray(nibabel.load(cohort / "images/1.nii.gz").dataobj)
    np.testing.assert_array_equal(
        store.read_volume(1)[0], original[::-1, ::-1].astype(np.float16).astype(np.float32)
    )


def test_an_assumed_spacing_has_a_median_along_ras_axes(tmp_path, write_nifti) -> None:
    """It is along each file's own axes, and the third file has others."""
    voxels = np.random.default_rng(0).integers(0, 900, (12, 10, 8)).astype(np.int16)
    for name in ("a", "b"):
        write_nifti(f"{name}.nii.gz", voxels, np.eye(4))
    write_nifti("c.nii.gz", voxels, np.eye(4)[[2, 1, 0, 3]])
    rows = "".join(f"{name}.nii.gz,{name}\n" for name in "abc")
    (tmp_path / "manifest.csv").write_text(f"path,patient\n{rows}")
    options = PrepareOptions(workers=1, spacing_mm="median", assume_spacing_mm=(2.0, 3.0, 9.0))
    prepare("csv", tmp_path, tmp_path / "out", options=options)
    affines = Store.open(tmp_path / "out").collection.affines
    for affine in affines:
        np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), (2, 3, 9), atol=1e-6)


def test_the_median_spacing_is_along_ras_axes_not_file_axes(tmp_path, write_nifti) -> None:
    rng = np.random.default_rng(0)
    # 3, 1, 2 mm along right, front, head.
    permuted = np.array([[0, 0, 3.0, 0], [1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]])
    for i, affine in enumerate([permuted, permuted, np.diag([9.0, 9, 9, 1])]):
        write_nifti(f"{i}.nii.gz", rng.normal(size=(9, 8, 7)).astype(np.float32), affine)
    (tmp_path / "manifest.csv").write_text(
        "scan,patient,path\n" + "".join(f"{i},{i},{i}.nii.gz\n" for i in range(3))
    )
    prepare("csv", tmp_path, tmp_path / "out", options=PrepareOptions(workers=1, spacing_mm="median"))
    np.testing.assert_allclose(Store.open(tmp_path / "out").collection.spacings, [[3, 1, 2]] * 3, rtol=1e-4)


def test_it_resumes_after_being_killed(cohort, tmp_path, container) -> None:
    """SIGKILL after the second scan; resuming prepares the others, and equals an uninterrupted run."""
    code = (
        "import os, signal, sys; from pathlib import Path; from medcl3d.preprocessing import scan, "
        "workers; from "
        "medcl3d.preprocessing.prepare import *\ndone, real = [], scan.prepare_scan\ndef slow(task, "
        "store):\n    if "
        "len(done) == 2: os.kill(os.getpid(), signal.SIGKILL)\n    done.append(1); return real(task, "
        "store)\nworkers.prepare_scan = slow\nprepare('csv', Path(sys.argv[1]), Path(sys.argv[2]), "
        "options=PrepareOptions(workers=1, store=sys.argv[3]))"
    )
    out, options = tmp_path / "out", PrepareOptions(workers=1, store=container)
    ended = subprocess.run(
        [sys.executable, "-c", code, str(cohort), str(out), container],
        cwd=Path(__file__).parents[2],
        capture_output=True,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert len(list((out / "store").glob("*.json"))) == 2
    with pytest.raises(DataError, match="no finished store"):
        Store.open(out)
    (out / "store" / f"001{SUFFIXES[container]}").write_bytes(b"half")  # a truncated file
    again = prepare("csv", cohort, out, options=options)
    assert (again.num_ok, again.num_unchanged) == (6, 1)
    prepare("csv", cohort, tmp_path / "uninterrupted", options=ONE)
    assert Store.open(out).fingerprint() == Store.open(tmp_path / "uninterrupted").fingerprint()
    assert prepare("csv", cohort, out, options=options).num_unchanged == 6


def test_a_kill_while_voxels_are_written_leaves_no_partial_file(cohort, tmp_path, container) -> None:
    """SIGKILL between writing and renaming the third file; then the other container replaces the first."""
    code = (
        "import os, signal, sys; from pathlib import Path; from medcl3d.preprocessing.prepare import "
        "*\nreal = "
        "os.fsync\ndef end(descriptor):\n    name = os.readlink(f'/proc/self/fd/{descriptor}')\n    if "
        "'/store/.001.' in name and 'json' not in name: os.kill(os.getpid(), signal.SIGKILL)\n    "
        "real(descriptor)\nos.fsync = end\nprepare('csv', Path(sys.argv[1]), Path(sys.argv[2]), "
        "options=PrepareOptions(workers=1, store=sys.argv[3]))"
    )
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system does not list the open files of a process")
    out = tmp_path / "out"
    ended = subprocess.run(
        [sys.executable, "-c", code, str(cohort), str(out), container],
        cwd=Path(__file__).parents[2],
        capture_output=True,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    names = {path.name for path in (out / "store").iterdir()}
    assert any(name.endswith(".part") for name in names)
    assert not {f"001{SUFFIXES[container]}", "001.json"} & names
    for folder in ("", "raw/"):
        (out / folder).mkdir(exist_ok=True)
        (out / folder / ".x.part").write_bytes(b"half")
    assert prepare("csv", cohort, out, options=PrepareOptions(workers=1, store=container)).num_ok == 6
    assert not list(out.rglob("*.part")), (
        "the lock is held, so that all partial files are of killed processes"
    )
    other = next(kind for kind in SUFFIXES if kind != container)
    assert prepare("csv", cohort, out, options=PrepareOptions(workers=1, store=other)).num_unchanged == 0
    assert {path.suffix for path in (out / "store").iterdir()} == {SUFFIXES[other], ".json"}


def test_another_container_is_prepared_again_and_replaces_the_first(cohort, tmp_path) -> None:
    pytest.importorskip("blosc2")
    out, before = tmp_path / "out", ""
    for kind in ("npy", "blosc2", "npy"):
        said: list[str] = []
        options = PrepareOptions(workers=1, store=kind)  # type: ignore[arg-type]
        assert prepare("csv", cohort, out, options=options, say=said.append).num_unchanged == 0
        assert (f"{out}: other store than before; all scans are prepared again" in said) == bool(before)
        suffix = SUFFIXES[kind]  # type: ignore[index]
        assert {path.suffix for path in (out / "store").iterdir()} == {suffix, ".json"}
        assert len(list((out / "store").iterdir())) == 6 + 5 + 6
        assert prepare("csv", cohort, out, options=options).num_unchanged == 6
        before = before or Store.open(out).fingerprint()
        assert Store.open(out).fingerprint() == before
    assert len(audit(out)) == 6


def test_an_older_store_without_a_container_entry_is_not_prepared_again(cohort, tmp_path) -> None:
    """Without an entry the container is .npy."""
    out = tmp_path / "out"
    prepare("csv", cohort, out, options=ONE)
    for path in (*(out / "store").glob("*.json"), out / "preparing.json"):
        about = json.loads(path.read_text())
        del (about["options"] if path.name == "preparing.json" else about)["store"]
        path.write_text(json.dumps(about))
    assert Store.open(out).read_volume(0).size
    said: list[str] = []
    assert prepare("csv", cohort, out, options=ONE, say=said.append).num_unchanged == 6
    assert not any("other" in line for line in said)


def test_an_older_store_without_a_new_field_of_its_source_is_not_prepared_again(cohort, tmp_path) -> None:
    out = tmp_path / "out"
    prepare("csv", cohort, out, options=ONE)
    about = json.loads((out / "preparing.json").read_text())
    assert about["source"]["fields"].pop("allow_outside") is False
    (out / "preparing.json").write_text(json.dumps(about))
    assert prepare("csv", cohort, out, options=ONE).num_unchanged == 6
    about["source"]["fields"]["allow_outside"] = True
    (out / "preparing.json").write_text(json.dumps(about))
    with pytest.raises(ConfigError, match="choose another folder"):
        prepare("csv", cohort, out, options=ONE)


def _change_a_voxel(path: Path) -> None:
    """Change the content and the time, but not the size."""
    size, content = path.stat().st_size, bytearray(gzip.decompress(path.read_bytes()))
    for at in range(352, len(content)):
        content[at] ^= 1  # flip the lowest bit
        packed = gzip.compress(content, mtime=0)
        if len(packed) == size:
            path.write_bytes(packed)
            os.utime(path, (1, 1))
            return
        content[at] ^= 1
    raise AssertionError("no change of one bit keeps the size")


def test_a_touched_file_is_unchanged_and_other_content_is_a_change(cohort, tmp_path, monkeypatch) -> None:
    """The hash decides, since copying a collection to another disk changes the times only."""
    out = tmp_path / "out"
    prepare("csv", cohort, out, options=ONE)
    for path in (cohort / "images/3.nii.gz", cohort / "labels/1.nii.gz"):
        os.utime(path, (0, 0))
    audit(out)
    assert prepare("csv", cohort, out, options=ONE).num_unchanged == 6
    monkeypatch.setattr(
        "medcl3d.preprocessing.scan_identity.content_sha256",
        lambda path: pytest.fail(f"{path} was read again"),
    )
    audit(out)
    assert prepare("csv", cohort, out, options=ONE).num_unchanged == 6
    monkeypatch.undo()
    _change_a_voxel(cohort / "labels/1.nii.gz")
    with pytest.raises(DataError, match=r"1 of 6 scans .*1\.nii\.gz: changed after preparing"):
        audit(out)


def test_the_working_directory_does_not_matter(cohort, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(cohort.parent)
    prepare("csv", Path(cohort.name), tmp_path / "out", options=ONE)
    monkeypatch.chdir(cohort)
    assert prepare("csv", Path("."), tmp_path / "out", options=ONE).num_unchanged == 6
    _change_a_voxel(cohort / "images/3.nii.gz")
    with pytest.raises(DataError, match="changed after preparing"):
        audit(tmp_path / "out")


def test_only_changed_scans_are_prepared_again(cohort, tmp_path) -> None:
    out = tmp_path / "out"
    prepare("csv", cohort, out, options=ONE)
    before = Store.open(out).fingerprint()
    _change_a_voxel(cohort / "images/3.nii.gz")
    with pytest.raises(DataError, match=r"1 of 6 scans .*3\.nii\.gz: changed after preparing"):
        audit(out)
    assert prepare("csv", cohort, out, options=ONE).num_unchanged == 5
    assert Store.open(out).fingerprint() != before
    audit(out)
    before = Store.open(out).fingerprint()
    said: list[str] = []
    changed = prepare(
        "csv", cohort, out, options=PrepareOptions(workers=1, spacing_mm=(2.0, 2.0, 2.0)), say=said.append
    )
    assert changed.num_unchanged == 0 and any("other spacing_mm than before" in line for line in said)
    assert Store.open(out).fingerprint() != before


def test_results_do_not_depend_on_the_number_of_workers(cohort, tmp_path) -> None:
    for workers in (1, 2):
        prepare("csv", cohort, tmp_path / str(workers), options=PrepareOptions(workers=workers))
    assert Store.open(tmp_path / "1").fingerprint() == Store.open(tmp_path / "2").fingerprint()
    assert (tmp_path / "1/manifest.csv").read_bytes() == (tmp_path / "2/manifest.csv").read_bytes()


def test_one_bad_file_is_reported_and_two_are_an_error(cohort, tmp_path) -> None:
    out = tmp_path / "out"
    (cohort / "images/2.nii.gz").write_bytes(b"")
    result = prepare("csv", cohort, out, options=ONE)
    assert (result.num_ok, result.num_refused) == (5, 1)
    report = pd.read_csv(out / "report.csv", dtype=str, keep_default_na=False).set_index("scan")
    assert report.loc["002", "status"] == "refused" and "empty" in report.loc["002", "reason"]
    assert "002" not in set(Store.open(out).collection.table["scan"])
    (cohort / "labels/0.nii.gz").write_bytes((cohort / "labels/1.nii.gz").read_bytes())
    with pytest.raises(DataError, match=r"2 of 6 scans were refused, 1 may be"):
        prepare("csv", cohort, out, options=ONE)
    assert "13x11x10 voxels cannot belong to an image of 12x11x10" in (out / "report.csv").read_text()
    assert prepare("csv", cohort, out, options=PrepareOptions(workers=1, max_bad_fraction=0.5)).num_ok == 4


def _one_odd(
    folder: Path, write_nifti: Callable[..., Path], voxels: np.ndarray, affine: np.ndarray, **header: object
) -> Path:
    """Three scans, of which the second is unusual."""
    rng = np.random.default_rng(0)
    usual = np.diag([1.0, 1, 1.5, 1])
    write_nifti("in/a.nii.gz", rng.normal(100, 20, (12, 12, 12)).astype(np.float32), usual)
    write_nifti("in/c.nii.gz", rng.normal(100, 20, (12, 12, 12)).astype(np.float32), usual)

    def change(raw: object) -> None:
        for name, value in header.items():
            raw[name] = value  # type: ignore[index]

    write_nifti("in/b.nii.gz", voxels, affine, change)
    (folder / "in/manifest.csv").write_text(
        "scan,patient,path\n" + "".join(f"{s},{s},{s}.nii.gz\n" for s in "abc")
    )
    return folder / "in"


NOISE = np.random.default_rng(1).normal(100, 20, (12, 14, 3)).astype(np.float32)


@pytest.mark.parametrize("planes", [1, 2, 3])
def test_a_thin_scan_is_prepared_like_any_other(tmp_path, write_nifti, planes) -> None:
    root = _one_odd(tmp_path, write_nifti, NOISE[..., :planes], np.diag([1.0, 1, 1.5, 1]))
    options = PrepareOptions(workers=1, spacing_mm=(3.0, 3.0, 5.0))
    assert prepare("csv", root, tmp_path / "out", options=options).num_ok == 3
    assert Store.open(tmp_path / "out").read_volume(1).shape == (1, 4, 4, 1)


@pytest.mark.parametrize(
    ("affine", "header", "reason"),
    [
        (np.diag([1.0, 1, 1.5, 1]), {"xyzt_units": 1}, "voxels of 1e+03 x 1e+03 x 1.5e+03 mm"),
        (np.diag([1e6, 1e6, 1e6, 1]), {}, "there would be"),
        (
            np.diag([1e-6, 1e-6, 1e-6, 1]),
            {},
            "no image is left: every voxel of channel 0 has the same value in 1x1x1 voxels",
        ),
    ],
)
def test_an_impossible_scan_is_refused_and_the_others_are_prepared(
    tmp_path, write_nifti, affine, header, reason
) -> None:
    root, said = _one_odd(tmp_path, write_nifti, NOISE, affine, **header), list[str]()
    for spacing in ((2.0, 2.0, 2.0), "median"):
        options = PrepareOptions(workers=1, spacing_mm=spacing)  # type: ignore[arg-type]
        result = prepare("csv", root, tmp_path / "out", options=options, say=said.append)
        assert (result.num_ok, result.num_refused) == (2, 1)
        refusal = next(line for line in said if line.startswith("refused: "))
        assert f"{root / 'b.nii.gz'}: " in refusal and reason in refusal
        assert said[-1].endswith(f"1 refused (all in {tmp_path / 'out/report.csv'})")


def test_an_unforeseen_exception_refuses_one_scan_only(cohort, tmp_path, monkeypatch) -> None:
    import medcl3d.preprocessing.scan as module

    ready = module.ready_scan

    def fail_once(task: ScanTask) -> ReadyScan:
        if task.scan == "002":
            raise IndexError("index 3 is out\nof bounds")
        return ready(task)

    monkeypatch.setattr(module, "ready_scan", fail_once)
    result = prepare("csv", cohort, tmp_path / "out", options=ONE)
    assert (result.num_ok, result.num_refused) == (5, 1)
    assert (
        "images/2.nii.gz: cannot be used: IndexError: index 3 is out of bounds; inspect the file"
        in (tmp_path / "out/report.csv").read_text()
    )

    store = tmp_path / "full/store"
    for error in (
        MachineError("out: cannot write: no space left"),
        PermissionError(13, "Permission denied", str(store / "000.json")),
    ):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(module, "ready_scan", fail)
        with pytest.raises(
            MachineError, match=r"no space left|full/store/000\.json: Permission denied; choose a folder"
        ):
            prepare("csv", cohort, tmp_path / "full", options=ONE)


def test_refused_and_skipped_scans_are_named(cohort, tmp_path, write_nifti) -> None:
    voxels = np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32)
    voxels[0, 0, 0] = np.nan
    write_nifti("raw/images/4.nii.gz", voxels)
    (cohort / "images/2.nii.gz").write_bytes(b"")
    said: list[str] = []
    out = tmp_path / "out"
    result = prepare("csv", cohort, out, options=PrepareOptions(workers=1, nonfinite="skip"), say=said.append)
    assert (result.num_ok, result.num_refused, result.num_skipped) == (4, 1, 1)
    assert said[-3] == f"refused: {cohort}/images/2.nii.gz: the file is empty (0 bytes); fetch it again"
    assert said[-2].startswith(f"skipped: {cohort}/images/4.nii.gz: 1 of 504 voxels")
    done = f"4 scans of 3 patients in {out} (0 already prepared), 1 refused, 1 skipped"
    assert said[-1] == f"{done} (all in {out}/report.csv)"
    (cohort / "manifest.csv").write_text("scan,patient,path\na,a,images/2.nii.gz\n")
    with pytest.raises(
        DataError, match=r"no scan is left: .*2\.nii\.gz: the file is empty .*1 in .*report\.csv"
    ):
        prepare("csv", cohort, tmp_path / "none", options=ONE)


def test_an_unreadable_source_is_not_an_error_of_the_output_folder(cohort, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    for place, error in ((cohort / "a", DataError), (out / "raw/b", MachineError)):

        def build(*_: object, place: Path = place) -> None:
            raise PermissionError(13, "Permission denied", str(place))

        monkeypatch.setattr("medcl3d.datasets.sources.SOURCES.build", build)
        with pytest.raises(error, match=f"{place}: .*Permission denied"):
            prepare("csv", cohort, out, options=ONE)


def test_the_normalisation_of_each_modality_is_reported(cohort, tmp_path) -> None:
    table = pd.read_csv(cohort / "manifest.csv", dtype=str, keep_default_na=False)
    table["modality"] = ["CTA", "FLAIR", "T1", "ct_abdomen", "T1", "PET"]
    table.to_csv(cohort / "manifest.csv", index=False)
    said: list[str] = []
    prepare("csv", cohort, tmp_path / "out", options=ONE, say=said.append)
    names = "CTA, ct_abdomen as ct (a window in HU); FLAIR, T1, PET as mri (by the values of the body)"
    assert f"intensity by the name of the modality: {names}" in said
    assert any(
        line.startswith("warning: 2 of 6 scans, as 000: values from") and "do not look like HU" in line
        for line in said
    )
    said.clear()
    prepare(
        "csv", cohort, tmp_path / "none", options=PrepareOptions(workers=1, intensity="none"), say=said.append
    )
    assert not any("modality" in line for line in said)


def test_a_lost_voxel_size_is_one_warning_and_can_be_given(tmp_path, write_nifti) -> None:
    rng = np.random.default_rng(0)
    for i in range(9):
        write_nifti(f"{i}.nii.gz", rng.normal(size=(9, 8, 7)).astype(np.float32))
    (tmp_path / "manifest.csv").write_text(
        "scan,patient,path\n" + "".join(f"{i},{i},{i}.nii.gz\n" for i in range(9))
    )
    said: list[str] = []
    prepare("csv", tmp_path, tmp_path / "out", options=ONE, say=said.append)
    reported = [line for line in said if "warning" in line]
    assert len(reported) == 1 and reported[0].startswith(
        "warning: 9 of 9 scans, as 0: the affine is the identity"
    )
    said.clear()
    options = PrepareOptions(workers=1, assume_spacing_mm=(1.0, 1.0, 9.0))
    prepare("csv", tmp_path, tmp_path / "out", options=options, say=said.append)
    reported = [line for line in said if "warning" in line]
    assert reported == [
        "warning: 9 of 9 scans, as 0: strongly anisotropic: 1, 1, 9 mm; a spacing to use: 3, 3, 9"
    ]


@pytest.mark.parametrize("store_as", ["float16", "int16"])
def test_each_volume_of_a_file_can_be_a_scan(tmp_path, write_nifti, store_as, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    affine = np.diag([1.0, 1, 2, 1])
    series = rng.integers(0, 1000, (9, 8, 7, 12)).astype(np.int16)
    write_nifti("four.nii.gz", series, affine)
    write_nifti("three.nii.gz", rng.integers(0, 1000, (9, 8, 7)).astype(np.int16), affine)
    write_nifti("label.nii.gz", (series[..., 0] > 500).astype(np.uint8), affine)
    head = "scan,patient,session,session_days,path,label\n"
    rows = "f,p,2,30,four.nii.gz,label.nii.gz\nt,q,1,0,three.nii.gz,\ng,r,1,0,gone.nii.gz,\n"
    (tmp_path / "manifest.csv").write_text(head + rows)
    reads: list[Path] = []
    import medcl3d.preprocessing.read_scan as module

    read = module.read_nifti
    monkeypatch.setattr(module, "read_nifti", lambda path: (reads.append(path), read(path))[1])
    options = PrepareOptions(workers=1, channels="split", intensity="none", store_as=store_as)
    said: list[str] = []
    result = prepare("csv", tmp_path, tmp_path / "out", options=options, say=said.append)
    assert (result.num_ok, result.num_refused, result.warnings) == (13, 1, ())
    assert "1 files of several volumes became 12 scans, one per volume" in said
    assert len([path for path in reads if path.name == "four.nii.gz"]) == 1, "once, not once per volume"
    store = Store.open(tmp_path / "out")
    table = store.collection.table
    assert table["scan"].tolist() == [*(f"f_v{n:02d}" for n in range(12)), "t"]
    assert (
        set(table["patient"][:12]) == {"p"}
        and set(table["frame"][:12]) == {"f"}
        and set(table["session_days"][:12]) == {"30"}
    )
    np.testing.assert_array_equal(store.collection.columns["volume_of_file"], [*range(12), 0])
    for n in range(12):
        np.testing.assert_allclose(store.read_volume(n)[0], series[..., n])
        np.testing.assert_array_equal(store.read_label(n), series[..., 0] > 500)
    said.clear()
    audit(tmp_path / "out", say=said.append)
    assert not any("same content" in line for line in said), "they are volumes of one file, not copies"
    os.utime(tmp_path / "four.nii.gz", (0, 0))
    assert prepare("csv", tmp_path, tmp_path / "out", options=options).num_unchanged == 13
    assert len(audit(tmp_path, given={"workers": 1, "channels": "split", "max_bad_fraction": 0.5})) == 3


def test_a_volume_cannot_have_the_id_of_another_scan(tmp_path, write_nifti) -> None:
    write_nifti("a.nii.gz", np.random.default_rng(0).normal(size=(5, 5, 5, 2)).astype(np.float32))
    (tmp_path / "b.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes())
    (tmp_path / "manifest.csv").write_text("scan,patient,path\na,a,a.nii.gz\na_v1,b,b.nii.gz\n")
    options = PrepareOptions(workers=1, channels="split")
    with pytest.raises(DataError, match="a_v0 of a, a_v1_v0 of b"):  # the same content under two patients
        prepare("csv", tmp_path, tmp_path / "out", options=options)
    (tmp_path / "b.nii.gz").unlink()
    write_nifti("b.nii.gz", np.random.default_rng(1).normal(size=(5, 5, 5)).astype(np.float32))
    with pytest.raises(DataError, match="scan id 'a_v1' is used for a volume and for another scan"):
        prepare("csv", tmp_path, tmp_path / "out", options=options)


def test_missing_files_are_an_error_before_any_work(cohort, tmp_path) -> None:
    for i in range(3):
        (cohort / f"images/{i}.nii.gz").unlink()
    with pytest.raises(
        DataError, match=r"3 files of the manifest are missing under .*raw: images/0\.nii\.gz"
    ):
        prepare("csv", cohort, tmp_path / "out", options=ONE)
    assert not list((tmp_path / "out/store").iterdir())


def test_real_bad_pairs_are_refused(real, tmp_path) -> None:
    bad = real / "bad_input"
    rows = [
        ("no_label", "image_without_label_hippocampus_118.nii.gz", "gone.nii.gz", "no such file"),
        ("no_image", "gone2.nii.gz", "label_without_image_hippocampus_010.nii.gz", "no such file"),
        (
            "wrong_organ",
            "../hippocampus/imagesTr/hippocampus_001.nii.gz",
            "label_without_image_hippocampus_281.nii.gz",
            "512x512x94",
        ),
        ("empty", "empty_0_bytes.nii.gz", "", "empty"),
        ("pointer", "git_lfs_pointer.nii.gz", "", "Git-LFS"),
        ("colour", "rgb_dtype.nii.gz", "", "RGB"),
        ("cut", "truncated_half_of_hippocampus_001.nii.gz", "", "truncated"),
        (
            "good",
            "../hippocampus/imagesTr/hippocampus_004.nii.gz",
            "../hippocampus/labelsTr/hippocampus_004.nii.gz",
            "",
        ),
    ]
    lines = [f"{scan},{scan},{bad / image},{bad / label if label else ''}" for scan, image, label, _ in rows]
    (tmp_path / "manifest.csv").write_text("\n".join(["scan,patient,path,label", *lines]))
    options = PrepareOptions(workers=1, max_bad_fraction=1.0)
    result = prepare("csv", tmp_path, tmp_path / "out", fields={"allow_outside": True}, options=options)
    assert (result.num_ok, result.num_refused) == (1, 7)
    report = pd.read_csv(tmp_path / "out/report.csv", dtype=str, keep_default_na=False).set_index("scan")
    for scan, _, _, fault in rows:
        assert fault in report.loc[scan, "reason"], scan


def test_the_same_content_under_two_patients(cohort, tmp_path) -> None:
    for kind in ("images", "labels"):
        (cohort / f"{kind}/2.nii.gz").write_bytes((cohort / f"{kind}/0.nii.gz").read_bytes())
    table = pd.read_csv(cohort / "manifest.csv", dtype=str, keep_default_na=False)
    table["split"] = ["train"] * 4 + ["test"] * 2
    table.to_csv(cohort / "manifest.csv", index=False)
    result = prepare("csv", cohort, tmp_path / "out", options=ONE)
    assert result.warnings == ("the same file under two patients: 000 of 000, 002 of 001",)
    table.drop(columns="split").to_csv(cohort / "manifest.csv", index=False)
    with pytest.raises(
        DataError, match=r"the same file is in fold \d and in fold \d: 000 of 000, 002 of 001"
    ):
        prepare("csv", cohort, tmp_path / "folds", options=PrepareOptions(workers=1, folds=3))
    table["split"] = ["train"] * 2 + ["test"] * 2 + ["train"] * 2
    table.to_csv(cohort / "manifest.csv", index=False)
    with pytest.raises(DataError, match="in train and in test: 000 of 000, 002 of 001"):
        prepare("csv", cohort, tmp_path / "out", options=ONE)


def test_a_folder_has_one_collection_and_one_writer(cohort, tmp_path, write_nifti) -> None:
    out = tmp_path / "out"
    prepare("csv", cohort, out, options=ONE)
    other = tmp_path / "other"
    other.mkdir()
    write_nifti("other/a.nii.gz", np.arange(60, dtype=np.float32).reshape(3, 4, 5))
    (other / "manifest.csv").write_text("scan,patient,path\na,a,a.nii.gz\n")
    with pytest.raises(ConfigError, match=r"was prepared from csv .*raw"):
        prepare("csv", other, out, options=ONE)
    from filelock import FileLock

    code = (
        "import sys, time; from filelock import FileLock; a = FileLock(sys.argv[1]); a.acquire(); "
        "print(1, flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(out / ".lock")], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline()
        with pytest.raises(MachineError, match="another process"):
            prepare("csv", cohort, out, options=ONE)
    finally:
        holder.kill()
        holder.wait()
    with FileLock(out / ".lock", timeout=5):
        pass


def test_invalid_arguments_are_configuration_errors(cohort, tmp_path) -> None:
    for source, root, fields, fault in (
        ("nifty", cohort, {}, "no source is named 'nifty'; choose from bids, csv"),
        ("csv", None, {}, "ROOT is missing"),
        ("csv", cohort, {"manifst": "a"}, "manifst"),
    ):
        with pytest.raises(ConfigError, match=fault):
            prepare(source, root, tmp_path / "out", fields=fields)
    for wrong in (
        {"percentiles": (50, 50)},
        {"spacing_mm": (0, 1, 1)},
        {"spacing_mm": "finest"},
        {"test_fraction": 1.5},
        {"colour": 1},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PrepareOptions(**wrong)  # type: ignore[arg-type]


def test_scans_of_different_channels_are_not_mixed(tmp_path, write_nifti) -> None:
    rng = np.random.default_rng(0)
    for i, channels in enumerate((1, 2)):
        write_nifti(f"{i}.nii.gz", rng.normal(size=(5, 5, 5, channels)).astype(np.float32))
    (tmp_path / "manifest.csv").write_text("scan,patient,path\n0,0,0.nii.gz\n1,1,1.nii.gz\n")
    with pytest.raises(DataError, match="number of channels"):
        prepare("csv", tmp_path, tmp_path / "out", options=PrepareOptions(workers=1, channels="all"))
    (tmp_path / "manifest.csv").write_text("scan,patient,path\n1,1,1.nii.gz\n")
    prepare("csv", tmp_path, tmp_path / "two", options=PrepareOptions(workers=1, channels="all"))
    store = Store.open(tmp_path / "two")
    assert store.num_channels == 2 and store.read_volume(0).shape == (2, 5, 5, 5)


def test_the_decathlon_of_real_crops(real, tmp_path) -> None:
    """Maxima from 112 to 1.7e6 are normalised, geometry and labels are kept, splits are by patient."""
    source = json.loads((real / "hippocampus/dataset.json").read_text())
    raw = {
        Path(item["image"]).name: nibabel.load(real / "hippocampus" / item["image"])
        for item in source["training"][::20]
    }
    source["training"] = source["training"][::20]
    (tmp_path / "raw").mkdir()
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "raw" / folder).symlink_to(real / "hippocampus" / folder)
    (tmp_path / "raw/dataset.json").write_text(json.dumps(source))
    prepare("decathlon", tmp_path / "raw", tmp_path / "out", fields={"allow_outside": True}, options=ONE)
    store = Store.open(tmp_path / "out")
    assert store.label_names[1] == "Anterior"
    for scan, image in enumerate(raw.values()):
        volume = store.read_volume(scan)[0]
        assert (
            volume.shape == image.shape
            and abs(volume.mean()) < 0.02
            and abs(volume.std() - 1) < 0.02
            and np.abs(volume).max() < 8
        )
        assert np.corrcoef(volume.ravel(), np.asarray(image.dataobj).ravel())[0, 1] > 0.9
        assert set(np.unique(store.read_label(scan))) <= {0, 1, 2}
    split = json.loads((tmp_path / "out/split.json").read_text())
    assert len(split["test"]) == 2 and len(split["train"]) == 8


def test_two_hundred_real_scans_are_normalised(real, tmp_path) -> None:
    prepare("decathlon", real / "hippocampus", tmp_path / "out", options=ONE)
    store = Store.open(tmp_path / "out")
    assert len(store) == 200
    assert max(np.abs(store.read_volume(i)).max() for i in range(0, 200, 5)) < 8


@pytest.mark.parametrize("name", ["manifest.csv", "report.csv", "split.json", "store/mine.npy"])
def test_foreign_files_are_not_overwritten(cohort, tmp_path, name) -> None:
    theirs = tmp_path / "out" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    for check in (True, False):
        found = name.split("/")[0]
        message = rf"--out .*out: contains {found} that `medcl3d prepare` did not write; choose an empty"
        with pytest.raises(ConfigError, match=message):
            if check:
                dry_run("csv", cohort, tmp_path / "out", {}, ONE, print)
            else:
                prepare("csv", cohort, tmp_path / "out", options=ONE)
    assert theirs.read_text() == "mine" and [
        path for path in (tmp_path / "out").rglob("*") if path.is_file()
    ] == [theirs]
    with pytest.raises(ConfigError, match=r"contains manifest\.csv that `medcl3d prepare` did not write"):
        prepare("csv", cohort, cohort, options=ONE)


@pytest.mark.parametrize("check", [True, False])
def test_converted_files_are_not_written_into_the_source(cohort, tmp_path, check) -> None:
    (tmp_path / "out").mkdir()
    moved = cohort.rename(tmp_path / "out" / "raw")
    with pytest.raises(
        ConfigError,
        match=r"would write into .*/out/raw, which contains the source; choose a folder beside it",
    ):
        dry_run("csv", moved, tmp_path / "out", {}, ONE, print) if check else prepare(
            "csv", moved, tmp_path / "out", options=ONE
        )
    assert not list(tmp_path.rglob("preparing.json"))


def test_removed_scans_are_deleted_and_other_patients_keep_their_side(cohort, tmp_path) -> None:
    """Remove one of six patients at a time: a new draw would move others, and is not used."""
    out, said, num_other_draws = tmp_path / "out", [], 0
    manifest = cohort / "manifest.csv"
    whole = pd.read_csv(manifest, dtype=str, keep_default_na=False).assign(
        patient=lambda table: table["scan"]
    )
    whole.to_csv(manifest, index=False)
    prepare("csv", cohort, out, options=ONE)
    before = read_split(out / "split.json", whole["patient"])
    for leaving in before.train:
        whole[whole["scan"] != leaving].to_csv(manifest, index=False)
        said.clear()
        prepare("csv", cohort, out, options=ONE, say=said.append)
        assert (
            "1 scans are no longer in the collection, or are refused now: their stored files were removed"
            in said
        )
        table = Store.open(out).collection.table
        assert (
            {path.name.split(".")[0] for path in (out / "store").iterdir()}
            == set(table["scan"])
            == set(whole["scan"]) - {leaving}
        )
        assert read_split(out / "split.json", table["patient"]).test == before.test
        num_other_draws += (
            make_split(table.assign(split=""), test_fraction=ONE.test_fraction, seed=ONE.seed).test
            != before.test
        )
        whole.to_csv(manifest, index=False)
        prepare("csv", cohort, out, options=ONE)
    assert num_other_draws


def test_patients_whose_side_changes_are_named(cohort, tmp_path) -> None:
    out, said = tmp_path / "out", []
    prepare("csv", cohort, out, options=ONE)
    first = json.loads((out / "split.json").read_text())
    prepare("csv", cohort, out, options=replace(ONE, test_fraction=0.7), say=said.append)
    assert any(
        "patients are on another side of the split than before (" in line and "from train to test" in line
        for line in said
    )
    second = json.loads((out / "split.json").read_text())
    by_hand = {**second, "train": second["test"], "test": second["train"]}
    (out / "split.json").write_text(json.dumps(by_hand))
    prepare("csv", cohort, out, options=replace(ONE, test_fraction=0.7))
    assert json.loads((out / "split.json").read_text()) == by_hand, "a split that was edited by hand is kept"
    prepare("csv", cohort, out, options=ONE)
    assert json.loads((out / "split.json").read_text()) == first


def test_a_label_equal_to_its_image_is_refused_and_many_values_give_a_warning(tmp_path, write_nifti) -> None:
    values = np.arange(1000, dtype=np.int16).reshape(10, 10, 10)
    for name, array in (("a", values), ("b", values + 1), ("c", values + 2), ("b_label", values)):
        write_nifti(f"{name}.nii.gz", array)
    (tmp_path / "manifest.csv").write_text(
        "path,label\na.nii.gz,a.nii.gz\nb.nii.gz,b_label.nii.gz\nc.nii.gz,\n"
    )
    prepare("csv", tmp_path, tmp_path / "out", options=ONE)
    report = (tmp_path / "out" / "report.csv").read_text()
    assert "the label is identical to its image, byte for byte; name the label map itself" in report
    assert "the label has 1000 different values: is it an image, or one number per object?" in report


def test_masks_among_the_images_are_stored_as_0_and_1_with_a_warning(tmp_path, write_nifti) -> None:
    affine = np.diag([1.5, 1.5, 2.0, 1.0])
    rows, rng = ["scan,patient,modality,path"], np.random.default_rng(0)
    for name, modality, levels in (("a", "MR", (0, 255)), ("b", "CT", (0, 1)), ("c", "mask", (2, 9))):
        mask = np.array(levels, np.int16)[(rng.random((12, 12, 12)) < 0.3).astype(int)]
        write_nifti(f"raw/{name}.nii.gz", mask, affine)
        rows.append(f"{name},{name},{modality},{name}.nii.gz")
    (tmp_path / "raw" / "manifest.csv").write_text("\n".join(rows) + "\n")
    said: list[str] = []
    prepare("csv", tmp_path / "raw", tmp_path / "out", options=PrepareOptions(workers=1), say=said.append)
    store = Store.open(tmp_path / "out")
    assert all(np.unique(store.read_volume(scan)).tolist() == [0.0, 1.0] for scan in range(3))
    assert any("only two values, 0 and 255: it is a mask, and stored as 0 and 1" in line for line in said)
    prepare(
        "csv",
        tmp_path / "raw",
        tmp_path / "half",
        options=PrepareOptions(workers=1, spacing_mm=(1.0, 1.0, 1.0)),
    )
    half = Store.open(tmp_path / "half").read_volume(0)
    assert half.min() == 0 and half.max() == 1, "resampled values are between 0 and 1"


def test_the_remedy_does_not_name_the_present_setting(tmp_path, write_nifti) -> None:
    voxels = np.random.default_rng(0).integers(0, 100_000, (12, 12, 12)).astype(np.int32)
    write_nifti("raw/a.nii.gz", voxels, np.diag([1.5, 1.5, 2.0, 1.0]))
    (tmp_path / "raw" / "manifest.csv").write_text("path,patient\na.nii.gz,p\n")
    with pytest.raises(DataError, match=r"do not fit float16; use store_as=int16 or intensity=mri"):
        prepare(
            "csv", tmp_path / "raw", tmp_path / "out", options=PrepareOptions(workers=1, intensity="none")
        )
