"""Prediction of new scans: label maps on the original grid, exact without resampling."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from medcl3d.cli import app
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.downstream.finetune import finetune
from medcl3d.downstream.predict.predict import Predictor, load_run, segment
from medcl3d.downstream.tasks.segmentation import Segmentation
from medcl3d.preprocessing.options import PrepareOptions
from medcl3d.preprocessing.prepare import prepare
from medcl3d.preprocessing.ready_scan import ready_scan
from medcl3d.store.store import Store

CLASSES = {1: "a", 4: "b", 300: "c"}
OPTIONS: dict[str, Any] = {
    "kind": "none", "classes": [], "assume_spacing_mm": None, "spacing_mm": None, "nonfinite": "error",
    "channels": "error",
    "percentiles": [0.5, 99.5], "window_hu": [-1000.0, 1000.0], "crop": "none",
    "label_interpolation": "nearest",
}  # fmt: skip


class Identity(torch.nn.Module):
    """A network whose input is a label map, and whose output is the class of each voxel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([-100.0 * (x - value).abs() for value in (0, *CLASSES)], dim=1)


def predictor(**options: Any) -> Predictor:
    return Predictor(
        Identity(), Segmentation(), CLASSES, {**OPTIONS, **options}, (8, 8, 8), 1, (1.0, 1.0, 1.0), "float32"
    )


def write(path: Path, labels: np.ndarray, affine: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels, affine), path)
    return path


def random_affine(seed: int) -> np.ndarray:
    """An affine of any handedness: oblique by up to 40 degrees, anisotropic, axes permuted and flipped."""
    rng = np.random.default_rng(seed)
    axis = rng.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    angle = rng.uniform(0, 0.7)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rotation = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    axes = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    affine = np.eye(4)
    affine[:3, :3] = rotation @ axes * rng.uniform(0.5, 5, 3)
    affine[:3, 3] = rng.uniform(-100, 100, 3)
    return affine


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000))
def test_an_identity_network_reproduces_the_label_map_exactly(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    labels = np.random.default_rng(seed).choice([0, *CLASSES], (9, 12, 7)).astype(np.int16)
    path = write(tmp_path_factory.mktemp("scan") / "a.nii.gz", labels, random_affine(seed))
    found, shares, _ = segment(predictor(), path, keep=True)
    np.testing.assert_array_equal(found, labels)
    assert shares is not None
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-5)


def test_a_voxel_size_assumed_in_training_is_assumed_in_prediction(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).choice([0, *CLASSES], (9, 8, 7)).astype(np.int16)
    path = write(tmp_path / "a.nii.gz", labels, np.eye(4)[[1, 2, 0, 3]])
    found, _, ready = segment(predictor(assume_spacing_mm=[1.5, 2.5, 8.0]), path)
    np.testing.assert_array_equal(found, labels)
    assert sorted(np.linalg.norm(ready.affine[:3, :3], axis=0)) == [1.5, 2.5, 8.0]


def test_a_scan_is_prepared_as_in_the_store(ball_root: Path) -> None:
    """Bitwise the same voxels, from the options in a sidecar."""
    from medcl3d.preprocessing.scan_task import ScanTask

    store = Store.open(ball_root)
    for scan in (1, 2):
        path = Path(store.scans[scan]["source"]["path"])
        ready = ready_scan(ScanTask.like(json.loads(json.dumps(store.intensity())), "x", path))
        np.testing.assert_array_equal(ready.voxels, store.read_volume(scan))
        np.testing.assert_array_equal(ready.affine, store.collection.affines[scan])


def test_labels_of_a_resampled_scan_are_on_its_own_grid(tmp_path: Path) -> None:
    """A box at 2 mm resampled to 1 mm, and the reverse: its faces move by less than a coarse voxel."""
    for spacing, resampled in ((2.0, 1.0), (1.0, 2.0)):
        affine = random_affine(3)
        affine[:3, :3] *= spacing / np.linalg.norm(affine[:3, :3], axis=0)
        labels = np.zeros((24, 20, 18), np.int16)
        labels[6:18, 5:15, 4:14] = 1
        path = write(tmp_path / f"{spacing}.nii.gz", labels, affine)
        found, _, ready = segment(predictor(spacing_mm=[resampled] * 3), path)
        assert found.shape == labels.shape and ready.voxels.shape[1:] != labels.shape
        inner, outer = np.zeros_like(labels, bool), np.zeros_like(labels, bool)
        inner[8:16, 7:13, 6:12] = True
        outer[4:20, 3:17, 2:16] = True
        assert (found[inner] == 1).all() and (found[~outer] == 0).all()
        assert 2 * ((found == 1) & (labels == 1)).sum() / ((found == 1).sum() + (labels == 1).sum()) > 0.85


def test_cropped_regions_are_background(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    voxels = rng.normal(0, 1, (20, 22, 24)) - 1000
    voxels[4:15, 5:16, 6:20] = rng.normal(40, 9, (11, 11, 14))
    path = write(tmp_path / "a.nii.gz", voxels.astype(np.int16), random_affine(5))

    class Everywhere(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.zeros_like(x), torch.ones_like(x)], dim=1)

    one = Predictor(
        Everywhere(),
        Segmentation(),
        {1: "a"},
        {**OPTIONS, "kind": "ct", "crop": "body"},
        (8, 8, 8),
        1,
        (1, 1, 1),
        "float32",
    )
    found, _, _ = segment(one, path)
    body = np.zeros_like(found)
    body[4:15, 5:16, 6:20] = 1
    np.testing.assert_array_equal(found, body)


class Sided(torch.nn.Module):
    """A network with one class per axis (right, front, head), whose score grows along that axis."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ramps = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in x.shape[2:]), indexing="ij")
        return torch.stack([torch.zeros_like(x[:, 0]), *(ramp.expand_as(x[:, 0]) for ramp in ramps)], dim=1)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SLP", "AIR"])
def test_flips_are_along_the_axes_of_the_patient_for_any_orientation_of_a_file(
    tmp_path: Path, axes: str
) -> None:
    """Probabilities are symmetric along flipped axes, and unchanged along the others."""
    to_ras = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes)
    )
    shape = [8, 6, 4]
    affine = nib.orientations.inv_ornt_aff(to_ras, shape)
    labels = nib.orientations.apply_orientation(
        np.random.default_rng(0).integers(0, 2, shape).astype(np.int16), to_ras
    )
    path = write(tmp_path / "a.nii.gz", labels, affine)
    assert "".join(nib.aff2axcodes(affine)) == axes
    back = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt(axes), nib.orientations.axcodes2ornt("RAS")
    )
    for flips in (
        (True, False, False),
        (False, True, False),
        (False, False, True),
        (True, False, True),
        (False, False, False),
    ):
        one = Predictor(Sided(), Segmentation(test_time_flips=flips), {1: "right", 2: "front", 3: "head"},
                        OPTIONS, (8, 6, 4), 1, (1.0, 1.0, 1.0), "float32")  # fmt: skip
        _, shares, _ = segment(one, path, keep=True)
        assert shares is not None
        ras = np.stack([nib.orientations.apply_orientation(share, back) for share in shares])
        assert [np.allclose(ras, np.flip(ras, 1 + axis), atol=1e-5) for axis in range(3)] == list(flips)
        for axis in np.flatnonzero(~np.array(flips)):
            assert (np.diff(ras[1 + axis], axis=axis) > 0).all(), "the class of an axis grows along it"


@pytest.fixture(scope="module")
def run(ball_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuning of two steps."""
    folder = tmp_path_factory.mktemp("run")
    config = {
        "data": {"root": str(ball_root), "patch_size": [16, 16, 8], "smaller_than_patch": "pad"},
        "task": "segmentation",
        "encoder": {"unet3d": {"channels": [4, 8], "strides": [1, 2]}},
        "train": {"steps": 2, "samples_per_step": 2, "precision": "float32"},
        "out_dir": str(folder / "fine"),
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    return finetune(folder / "c.yaml")


def medcl3d(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_finished_run_segments_a_file_and_a_folder(run: Path, ball_root: Path, tmp_path: Path) -> None:
    store = Store.open(ball_root)
    scan = Path(store.scans[6]["source"]["path"])
    out = tmp_path / "new" / "label.nii.gz"
    done = medcl3d("predict", run, scan, "--out", out, "--probabilities")
    assert done.exit_code == 0, done.output
    image, label = nib.load(scan), nib.load(out)
    assert label.shape == image.shape and np.array_equal(label.affine, image.affine)
    shares = nib.load(tmp_path / "new" / "label_probabilities.nii.gz").get_fdata()
    assert shares.shape == (*image.shape, 3) and np.allclose(shares.sum(-1), 1, atol=1e-4)
    predictor = load_run(run)
    values = np.array([0, *predictor.classes])
    np.testing.assert_array_equal(np.asarray(label.dataobj), values[shares.argmax(-1)])
    # The same as in the evaluation of the run.
    expected = Segmentation().segment(
        predictor.model, store, 6, predictor.patch_size, torch.device("cpu"), None
    )
    np.testing.assert_array_equal(np.asarray(label.dataobj), values[expected])

    (tmp_path / "in" / "deep").mkdir(parents=True)
    shutil.copy(scan, tmp_path / "in" / "deep" / "a.nii.gz")
    (tmp_path / "in" / "empty.nii.gz").touch()
    done = medcl3d("predict", run, tmp_path / "in", "--out", tmp_path / "labels")
    assert (
        done.exit_code == 3
        and "1 scans were not segmented, 1 were" in done.stderr
        and "empty.nii.gz: the file is empty" in done.stderr
    )
    np.testing.assert_array_equal(
        np.asarray(nib.load(tmp_path / "labels/deep/a.nii.gz").dataobj), np.asarray(label.dataobj)
    )


def test_a_run_predicts_with_the_flips_of_its_evaluation(run: Path, ball_root: Path, tmp_path: Path) -> None:
    """An older run without flips keeps its task and its run folder."""
    store = Store.open(ball_root)
    scan, shares = Path(store.scans[6]["source"]["path"]), []
    flips = (True, True, False)
    new = change(
        run, tmp_path / "new", lambda s: s["task"]["segmentation"].update(test_time_flips=list(flips))
    )
    old = change(run, tmp_path / "old", lambda s: s["task"]["segmentation"].pop("test_time_flips"))
    for folder in (run, old, new):
        assert (
            medcl3d(
                "predict", folder, scan, "--out", tmp_path / f"{folder.name}.nii", "--probabilities"
            ).exit_code
            == 0
        )
        shares.append(nib.load(tmp_path / f"{folder.name}_probabilities.nii.gz").get_fdata())
    assert load_run(old).task == Segmentation() and load_run(new).task == Segmentation(test_time_flips=flips)
    np.testing.assert_array_equal(shares[0], shares[1])
    assert np.abs(shares[2] - shares[0]).max() > 1e-4
    label, predictor = np.asarray(nib.load(tmp_path / "new.nii").dataobj), load_run(new)
    expected = predictor.task.segment(
        predictor.model, store, 6, predictor.patch_size, torch.device("cpu"), None
    )
    np.testing.assert_array_equal(label, np.array([0, *predictor.classes])[expected])

    config = yaml.safe_load((old / "config.yaml").read_text())
    config["task"]["segmentation"].pop("test_time_flips")
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    before = (old / "model.safetensors").stat().st_mtime_ns
    assert (
        finetune(run.parent / "c.yaml", [f"out_dir={old}"]) == old
        and (old / "model.safetensors").stat().st_mtime_ns == before
    )
    with pytest.raises(ConfigError, match="test_time_flips"):
        finetune(
            run.parent / "c.yaml",
            [f"out_dir={old}", "task.segmentation.test_time_flips=[true, false, false]"],
        )


def test_nothing_is_overwritten_without_force(run: Path, ball_root: Path, tmp_path: Path) -> None:
    scan = Path(Store.open(ball_root).scans[6]["source"]["path"])
    out = tmp_path / "label.nii.gz"
    out.write_bytes(b"mine")
    done = medcl3d("predict", run, scan, "--out", out)
    assert done.exit_code == 2 and "--force" in done.stderr and out.read_bytes() == b"mine"
    assert (
        medcl3d("predict", run, scan, "--out", out, "--force").exit_code == 0 and out.read_bytes() != b"mine"
    )
    own = shutil.copy(scan, tmp_path / "scan.nii.gz")
    done = medcl3d("predict", run, own, "--out", own, "--force")
    assert done.exit_code == 2 and "is an input scan" in done.stderr


def test_a_rerun_resumes_a_stopped_prediction(
    run: Path, ball_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans, inputs, out = Store.open(ball_root).scans, tmp_path / "in", tmp_path / "labels"
    inputs.mkdir()
    for index, name in enumerate("abc"):
        shutil.copy(scans[index]["source"]["path"], inputs / f"{name}.nii.gz")
    whole = tmp_path / "whole"
    assert medcl3d("predict", run, inputs, "--out", whole, "--probabilities").exit_code == 0
    seen: list[str] = []

    def watched(predictor: Predictor, path: Path, *args: Any, **fields: Any) -> Any:
        seen.append(path.name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return segment(predictor, path, *args, **fields)

    monkeypatch.setattr("medcl3d.downstream.predict.predict.segment", watched)
    command = ("predict", run, inputs, "--out", out, "--probabilities")
    assert medcl3d(*command).exit_code != 0 and seen == ["a.nii.gz", "b.nii.gz"]
    corrected = nib.load(out / "a.nii.gz")  # corrected manually, in a program that keeps the header
    nib.save(nib.Nifti1Image(np.asarray(corrected.dataobj) * 0, None, corrected.header), out / "a.nii.gz")
    (out / "a_probabilities.nii.gz").unlink()
    done = medcl3d(*command)
    assert done.exit_code == 0 and seen[2:] == ["a.nii.gz", "b.nii.gz", "c.nii.gz"], done.output
    assert not np.asarray(nib.load(out / "a.nii.gz").dataobj).any(), "only missing files are written"
    for name in ("a_probabilities", "b", "b_probabilities", "c", "c_probabilities"):
        assert (out / f"{name}.nii.gz").read_bytes() == (whole / f"{name}.nii.gz").read_bytes()
    done = medcl3d(*command)
    assert done.exit_code == 0 and len(seen) == 5
    assert "3 of 3 scans were segmented by this run before and are kept; 0 remaining" in done.stderr

    shutil.copy(scans[4]["source"]["path"], inputs / "b.nii.gz")  # another scan with the same name
    done, foreign = medcl3d(*command), out / "b.nii.gz"
    message = f"2 files exist already that this run did not write for these scans, for example {foreign}"
    assert done.exit_code == 2 and message in done.stderr, done.output
    other = change(
        run, tmp_path / "other", lambda sidecar: sidecar["task"]["segmentation"].update(overlap=0.25)
    )
    done = medcl3d("predict", other, inputs, "--out", out)
    assert done.exit_code == 2 and "3 files exist already" in done.stderr, done.output
    assert medcl3d(*command, "--force").exit_code == 0 and seen[5:] == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert (out / "a.nii.gz").read_bytes() == (whole / "a.nii.gz").read_bytes()


def test_names_in_a_header_are_not_copied(run: Path, ball_root: Path, tmp_path: Path) -> None:
    image = nib.load(Path(Store.open(ball_root).scans[6]["source"]["path"]))
    image.header["descrip"], image.header["aux_file"] = b"Doe Jane", b"Doe"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Doe Jane"))
    nib.save(image, tmp_path / "a.nii")
    assert medcl3d("predict", run, tmp_path / "a.nii", "--out", tmp_path / "b.nii").exit_code == 0
    assert b"Doe" in (tmp_path / "a.nii").read_bytes() and b"Doe" not in (tmp_path / "b.nii").read_bytes()


def change(run: Path, copy: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    shutil.copytree(run, copy)
    sidecar = json.loads((copy / "model.json").read_text())
    edit(sidecar)
    (copy / "model.json").write_text(json.dumps(sidecar))
    return copy


def test_a_run_that_cannot_segment_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run folder"):
        load_run(tmp_path)
    (tmp_path / "status.json").write_text('{"state": "running"}')
    with pytest.raises(ConfigError, match="its run is running; let it finish"):
        load_run(tmp_path)
    (tmp_path / "pre").mkdir()
    (tmp_path / "pre" / "status.json").write_text('{"state": "done"}')
    with pytest.raises(ConfigError, match="not a run folder of a fine-tuning"):
        load_run(tmp_path / "pre")
    (tmp_path / "pre" / "encoder.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="it is a pretraining; fine-tune its encoder first"):
        load_run(tmp_path / "pre")
    for name, edit, message in (
        ("task", lambda s: s.update(task="structure_at_centre"), "trained for structure_at_centre"),
        ("lacking", lambda s: s.pop("intensity"), "model.json: lacks intensity"),
        ("schema", lambda s: s.update(schema=99), "newer medcl3d"),
        (
            "shape",
            lambda s: s["architecture"]["unet3d"].update(channels=[4, 16]),
            "not the network of model.json",
        ),
        ("kinds", lambda s: s["intensity"].update(kind="ct+mri"), "--intensity ct"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_run(change(run, tmp_path / name, edit))
    assert load_run(tmp_path / "kinds", "ct").options["kind"] == "ct"
    with pytest.raises(ConfigError, match="was trained on mri"):
        load_run(run, "ct")
    (tmp_path / "task" / "model.safetensors").write_bytes(b"cut")
    done = medcl3d("predict", tmp_path / "nothing", tmp_path, "--out", tmp_path / "o")
    assert done.exit_code == 2 and len(done.stderr.splitlines()) == 1


def test_a_scan_with_another_number_of_channels_is_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.nii.gz",
        np.random.default_rng(0).integers(0, 2, (6, 6, 6, 2)).astype(np.int16),
        np.eye(4),
    )
    with pytest.raises(DataError, match="has 2 channels, the network takes 1"):
        segment(predictor(channels="all"), path)


def test_a_dicom_folder_is_segmented_series_by_series(run: Path, tmp_path: Path) -> None:
    from tests.datasets.dicoms import VOXELS, write_series

    write_series(tmp_path / "in" / "a", np.tile(VOXELS, (2, 2, 2)), Modality="MR")
    done = medcl3d("predict", run, tmp_path / "in", "--out", tmp_path / "labels")
    assert done.exit_code == 0, done.output
    (label,) = (tmp_path / "labels").iterdir()
    assert nib.load(label).shape == (12, 14, 10)


def test_nifti_and_dicom_of_one_folder_are_both_segmented_and_others_are_reported(
    run: Path, ball_root: Path, tmp_path: Path
) -> None:
    from tests.datasets.dicoms import VOXELS, write_series

    scan = Path(Store.open(ball_root).scans[6]["source"]["path"])
    write_series(tmp_path / "in" / "series", np.tile(VOXELS, (2, 2, 2)), Modality="MR")
    write_series(tmp_path / "in" / "scout", VOXELS[:1], Modality="MR", uid="1.2.10")
    shutil.copy(scan, tmp_path / "in" / "a.nii.gz")
    for name in ("b.mha", "c.nrrd", "notes.txt"):
        (tmp_path / "in" / name).write_text("no volume")
    done = medcl3d("predict", run, tmp_path / "in", "--out", tmp_path / "labels")
    assert done.exit_code == 0, done.output
    names = sorted(path.name for path in (tmp_path / "labels").iterdir())
    assert len(names) == 2 and "a.nii.gz" in names, names
    assert "3 files are neither NIfTI nor DICOM and were skipped: b.mha, c.nrrd, notes.txt" in done.stderr
    assert "fewer than 3 slices were skipped" in done.stderr and "are not DICOM images" not in done.stderr
    shutil.rmtree(tmp_path / "in" / "series")
    done = medcl3d("predict", run, tmp_path / "in", "--out", tmp_path / "again")
    assert done.exit_code == 0 and "only the NIfTI files are used" in done.stderr, done.output


@pytest.mark.parametrize("names", [("a.nii", "a.nii.gz"), ("a.nii.gz", "a_probabilities.nii.gz")])
def test_two_scans_with_one_output_file_are_refused_before_any_is_segmented(
    run: Path, ball_root: Path, tmp_path: Path, names: tuple[str, str]
) -> None:
    image = nib.load(Path(Store.open(ball_root).scans[6]["source"]["path"]))
    (tmp_path / "in").mkdir()
    for name in names:
        nib.save(image, tmp_path / "in" / name)
    command = ("predict", run, tmp_path / "in", "--out", tmp_path / "labels")
    for more in ("--probabilities", "--force", "--check")[: 3 if names[0] == "a.nii" else 1]:
        done = medcl3d(*command, more)
        assert done.exit_code == 2 and f"{names[0]} and {names[1]} would both be written to" in done.stderr, (
            done.output
        )
    assert not (tmp_path / "labels").exists()


def test_a_scan_that_raises_in_a_library_is_reported_and_the_others_are_segmented(
    run: Path, ball_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medcl3d.downstream.predict import predict as module

    image = nib.load(Path(Store.open(ball_root).scans[6]["source"]["path"]))
    (tmp_path / "in").mkdir()
    for name in "abcd":
        nib.save(image, tmp_path / "in" / f"{name}.nii.gz")
    good = module.segment

    def fragile(predictor: Predictor, path: Path, *args: Any, **fields: Any) -> Any:
        errors = {"b.nii.gz": RuntimeError("ITK ERROR:\n  four pixels are needed"), "c.nii.gz": MemoryError()}
        if path.name in errors:
            raise errors[path.name]
        return good(predictor, path, *args, **fields)

    monkeypatch.setattr(module, "segment", fragile)
    done = medcl3d("predict", run, tmp_path / "in", "--out", tmp_path / "labels")
    assert (
        done.exit_code == 3
        and "2 scans were not segmented, 2 were" in done.stderr
        and "Traceback" not in done.output
    )
    assert (
        f"{tmp_path / 'in' / 'b.nii.gz'}: cannot be used: RuntimeError: ITK ERROR: four pixels are needed"
        in done.stderr
    )
    assert f"{tmp_path / 'in' / 'c.nii.gz'}: cannot be used: MemoryError" in done.stderr
    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == ["a.nii.gz", "d.nii.gz"]


def test_a_full_disk_ends_the_prediction(
    run: Path, ball_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medcl3d.downstream.predict.predict.write_nifti", full)
    scan = Path(Store.open(ball_root).scans[6]["source"]["path"])
    done = medcl3d("predict", run, scan, "--out", tmp_path / "a.nii.gz")
    assert done.exit_code == 4 and "No space left on device; 0 scans are done" in done.stderr, done.output


def test_the_remedy_applies_to_predict(run: Path, ball_root: Path, tmp_path: Path) -> None:
    image = nib.load(Path(Store.open(ball_root).scans[6]["source"]["path"]))
    voxels = np.asarray(image.dataobj).astype(np.float32)
    write(tmp_path / "in" / "four.nii.gz", np.stack([voxels, voxels], -1), image.affine)
    voxels[0, 0, 0] = np.nan
    write(tmp_path / "in" / "nan.nii.gz", voxels, image.affine)
    done = medcl3d("predict", run, tmp_path / "in", "--out", tmp_path / "labels")
    assert done.exit_code == 3, done.output
    for option in ("channels", "nonfinite"):
        assert (
            f"the run was trained on scans prepared with {option} = error, so repair or leave out this "
            "scan" in done.stderr
        )
        assert f"set {option}" not in done.stderr


def test_an_invalid_output_path_is_refused_at_once(run: Path, ball_root: Path, tmp_path: Path) -> None:
    scan = Path(Store.open(ball_root).scans[6]["source"]["path"])
    done = medcl3d("predict", run, scan, "--out", tmp_path / "z.mha")
    assert (
        done.exit_code == 2
        and "labels are written as NIfTI" in done.stderr
        and not (tmp_path / "z.mha").exists()
    )
    (tmp_path / "file").touch()
    done = medcl3d("predict", run, scan, "--out", tmp_path / "file")
    assert done.exit_code == 4 and "is not a folder; choose another path" in done.stderr
    (tmp_path / "v1.img").mkdir()
    assert medcl3d("predict", run, scan, "--out", tmp_path / "v1.img").exit_code == 0, (
        "a folder may have any name"
    )


def test_a_dry_run_reports_the_files_and_writes_nothing(run: Path, ball_root: Path, tmp_path: Path) -> None:
    scan = Path(Store.open(ball_root).scans[6]["source"]["path"])
    (tmp_path / "in").mkdir()
    shutil.copy(scan, tmp_path / "in" / "a.nii.gz")
    command = ("predict", run, tmp_path / "in", "--out", tmp_path / "labels", "--probabilities", "--check")
    done = medcl3d(*command)
    assert done.exit_code == 0 and "1 scans would be segmented" in done.stderr, done.output
    assert (
        f"{tmp_path / 'labels' / 'a.nii.gz'} and {tmp_path / 'labels' / 'a_probabilities.nii.gz'}"
        in done.stderr
    )
    (tmp_path / "in" / "b.nii.gz").write_bytes(b"nothing")
    done = medcl3d(*command)
    assert done.exit_code == 3 and "1 scans would not be segmented, of 2" in done.stderr, done.output
    write(tmp_path / "in" / "b.nii.gz", np.zeros((8, 8, 8, 3), np.int16), np.eye(4))
    done = medcl3d(*command)
    assert done.exit_code == 3 and "b.nii.gz: 4-D, 8x8x8x3" in done.stderr, done.output
    done = medcl3d("predict", run, scan, "--out", tmp_path / "labels.NII.GZ", "--check")
    assert done.exit_code == 2 and "extension not in lower case; use .nii.gz" in done.stderr, done.output
    assert not (tmp_path / "labels").exists()


def test_a_store_may_be_cropped_to_bodies_and_its_labels_interpolated(tmp_path: Path) -> None:
    """A ball of HU in air: the store has the body's box at its position.

    Linear interpolation keeps the volume.
    """
    grid = np.indices((30, 30, 30)).astype(float)
    ball = ((grid - 14.6) ** 2).sum(0) < 9.3**2
    body = ((grid - 14.6) ** 2).sum(0) < 12**2
    write(
        tmp_path / "a.nii.gz",
        np.where(body, np.where(ball, 200, 20), -1000).astype(np.int16),
        np.diag([1.0, 1, 1, 1]),
    )
    write(tmp_path / "l.nii.gz", ball.astype(np.uint8), np.diag([1.0, 1, 1, 1]))
    (tmp_path / "manifest.csv").write_text("scan,patient,modality,path,label\na,a,CT,a.nii.gz,l.nii.gz\n")
    volumes = {}
    for way in ("nearest", "linear"):
        options = PrepareOptions(workers=1, crop="body", label_interpolation=way, spacing_mm=(2.3, 2.3, 2.3))
        prepare("csv", tmp_path, tmp_path / way, options=options)
        store = Store.open(tmp_path / way)
        label = store.read_label(0)
        assert label.shape == store.read_volume(0).shape[1:] and max(label.shape) < 13, (
            "30 mm at 2.3 mm, cropped to the ball"
        )
        centre = (
            np.argwhere(label).mean(0) @ store.collection.affines[0][:3, :3].T
            + store.collection.affines[0][:3, 3]
        )
        np.testing.assert_allclose(centre, 14.6, atol=0.4)
        volumes[way] = label.sum() * 2.3**3
    assert abs(volumes["linear"] - ball.sum()) < 0.1 * ball.sum()
    found = json.loads((tmp_path / "linear/store/a.json").read_text())
    assert found["source_shape"] == [30, 30, 30] and found["source_affine"] == np.eye(4).tolist()
