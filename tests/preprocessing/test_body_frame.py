"""Registration recovers a known affine, and a store with it places scans in one frame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import affine_transform, gaussian_filter

from medcl3d.core.errors import DataError
from medcl3d.preprocessing.body_frame import register_bodies
from medcl3d.preprocessing.options import prepare_options
from medcl3d.preprocessing.prepare import prepare
from medcl3d.preprocessing.register import register
from medcl3d.store.store import Store
from medcl3d.store.stored_scan import REGISTERED

SIDE, SPACING = 48, 3.0


def body(seed: int = 0) -> np.ndarray:
    """A smooth random texture inside an ellipsoid."""
    texture = gaussian_filter(np.random.default_rng(seed).normal(size=(SIDE,) * 3), 3)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 3, indexing="ij"))
    inside = (grid**2 / np.array([0.5, 0.7, 0.6])[:, None, None, None] ** 2).sum(0) < 1
    return np.asarray((1 + 4 * texture / texture.std()) * inside, dtype=np.float32)


def affine_mm(linear: np.ndarray, shift: tuple[float, float, float]) -> np.ndarray:
    found = np.eye(4)
    found[:3, :3], found[:3, 3] = linear, shift
    return found


def moved(volume: np.ndarray, voxel_to_world: np.ndarray, to_reference: np.ndarray) -> np.ndarray:
    """The scan whose world mm `to_reference` takes to the world mm of `volume`."""
    matrix = np.linalg.inv(voxel_to_world) @ to_reference @ voxel_to_world
    return np.asarray(affine_transform(volume, matrix[:3, :3], matrix[:3, 3], order=1), dtype=np.float32)


@pytest.mark.parametrize(
    "linear",
    [
        np.eye(3),
        np.diag([1.1, 0.93, 1.05]),
        np.array([[0.98, -0.12, 0.0], [0.12, 0.98, 0.05], [0.0, -0.05, 1.0]]),
        np.array([[1.0, 0.1, 0.0], [0.0, 1.0, 0.0], [0.0, 0.05, 0.95]]),
    ],
    ids=["shift", "scale", "turn", "shear"],
)
def test_a_known_affine_is_recovered(linear: np.ndarray) -> None:
    voxel_to_world = affine_mm(np.eye(3) * SPACING, (-70, -60, 20))
    middle = voxel_to_world @ [SIDE / 2, SIDE / 2, SIDE / 2, 1]
    true = affine_mm(linear, tuple(middle[:3] - linear @ middle[:3] + [5, -4, 3]))
    reference = body()
    scan = moved(reference, voxel_to_world, true) * 2 + 1  # other contrast
    found = register(scan, voxel_to_world, reference, voxel_to_world, np.eye(4))
    points = (voxel_to_world @ np.c_[np.random.default_rng(0).uniform(12, 36, (50, 3)), np.ones(50)].T)[:3]
    homogeneous = np.vstack([points, np.ones(50)])
    error = np.linalg.norm(((found.matrix - true) @ homogeneous)[:3], axis=0)
    assert error.max() < SPACING / 2 and found.similarity > found.before
    again = register(scan, voxel_to_world, reference, voxel_to_world, np.eye(4))
    np.testing.assert_array_equal(again.matrix, found.matrix)


def test_a_scan_stored_on_a_sheared_and_turned_grid_has_the_same_affine() -> None:
    voxel_to_world = affine_mm(np.eye(3) * SPACING, (-70, -60, 20))
    oblique = voxel_to_world @ affine_mm(
        np.array([[0.97, -0.2, 0], [0.2, 0.97, 0.1], [0, 0, 1.0]]), (3, -6, 0)
    )
    reference = body()
    between = np.linalg.inv(voxel_to_world) @ oblique
    scan = np.asarray(affine_transform(reference, between[:3, :3], between[:3, 3], order=1), np.float32)
    found = register(scan, oblique, reference, voxel_to_world, affine_mm(np.eye(3), (4, 3, -4)))
    middle = voxel_to_world @ [SIDE / 2, SIDE / 2, SIDE / 2, 1]
    assert np.linalg.norm((found.matrix @ middle - middle)[:3]) < SPACING / 2


def test_scans_without_a_common_shape_are_refused() -> None:
    voxel_to_world = affine_mm(np.eye(3) * SPACING, (0, 0, 0))
    with pytest.raises(DataError, match="registration"):
        register(np.zeros((SIDE,) * 3, np.float32), voxel_to_world, body(), voxel_to_world, np.eye(4))


def store_of(tmp_path: Path, **options: Any) -> tuple[Store, list[str]]:
    given = prepare_options("simulated", {"num_patients": 4, "shape": [32, 32, 32], "workers": 1, **options})
    lines: list[str] = []
    prepare("simulated", None, tmp_path / "s", fields=given.fields, options=given.options, say=lines.append)
    return Store.open(tmp_path / "s"), lines


def test_a_store_is_registered_to_a_training_scan_and_resumes(tmp_path: Path) -> None:
    plain, _ = store_of(tmp_path)
    assert not (tmp_path / "s" / REGISTERED).exists()
    store, lines = store_of(tmp_path, body_coordinates="affine")
    written = json.loads((tmp_path / "s" / REGISTERED).read_text())
    table = store.collection.table.set_index("scan")
    train = json.loads((tmp_path / "s" / "split.json").read_text())["train"]
    assert table.loc[written["reference"], "patient"] in train
    assert set(written["scans"]) == set(table.index)
    assert any("registered to" in line for line in lines)
    of_world = dict(zip(store.collection.table["scan"], store.collection.body.from_world, strict=True))
    before = dict(zip(plain.collection.table["scan"], plain.collection.body.from_world, strict=True))
    np.testing.assert_array_equal(of_world[written["reference"]], before[written["reference"]])
    changed = [scan for scan in of_world if not np.array_equal(of_world[scan], before[scan])]
    assert changed
    for _, frame in pd.DataFrame({"frame": table["frame"]}).groupby("frame"):
        for scan in frame.index:
            np.testing.assert_array_equal(of_world[scan], of_world[frame.index[0]])
    time = (tmp_path / "s" / REGISTERED).read_text()
    store_of(tmp_path, body_coordinates="affine")
    assert (tmp_path / "s" / REGISTERED).read_text() == time
    back, _ = store_of(tmp_path)
    np.testing.assert_array_equal(back.collection.body.from_world, plain.collection.body.from_world)


def test_a_scan_that_cannot_be_registered_is_named_and_keeps_its_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise DataError("the registration failed: test")

    monkeypatch.setattr("medcl3d.preprocessing.register.register", fail)
    plain, _ = store_of(tmp_path)
    store, lines = store_of(tmp_path, body_coordinates="affine")
    frames = store.collection.table["frame"].nunique()
    assert any(f"{frames - 1} failed" in line for line in lines)
    assert any("the registration failed: test" in line for line in lines)
    reference = json.loads((tmp_path / "s" / REGISTERED).read_text())["reference"]
    for row, scan in enumerate(store.collection.table["scan"]):
        if scan == reference or store.collection.table["frame"].duplicated(keep=False).iloc[row]:
            continue
        np.testing.assert_array_equal(
            store.collection.body.from_world[row], plain.collection.body.from_world[row]
        )


def test_a_scan_is_registered_again_if_its_position_changes(tmp_path: Path) -> None:
    """The voxels of a file with another header are the same."""
    store_of(tmp_path, body_coordinates="affine")
    root = tmp_path / "s"
    before = json.loads((root / REGISTERED).read_text())
    table = pd.read_csv(root / "manifest.csv", dtype=str, keep_default_na=False)
    for scan in table["scan"]:
        path = next((root / "store").glob(f"{scan}*.json"))
        about = json.loads(path.read_text())
        affine = np.array(about["affine"])
        affine[:3, :3] *= 2
        path.write_text(json.dumps(about | {"affine": affine.tolist()}))
    train = json.loads((root / "split.json").read_text())["train"]
    register_bodies(root, table, train, 1, lambda _: None)
    now = json.loads((root / REGISTERED).read_text())
    reference = now["reference"]
    assert not np.array_equal(now["scans"][reference]["from_world"], before["scans"][reference]["from_world"])
    register_bodies(root, table.assign(atlas="a.txt"), train, 1, lambda _: None)
    assert not (root / REGISTERED).exists(), "an atlas precedes it"


def test_a_store_does_not_open_between_two_preparations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_of(tmp_path, body_coordinates="affine")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("medcl3d.preprocessing.finish.register_bodies", killed)
        with pytest.raises(KeyboardInterrupt):
            store_of(tmp_path, body_coordinates="affine")
    with pytest.raises(DataError, match="contains no finished store"):
        Store.open(tmp_path / "s")


def test_coordinates_of_an_earlier_content_are_refused(tmp_path: Path) -> None:
    store_of(tmp_path, body_coordinates="affine")
    path = tmp_path / "s" / REGISTERED
    written = json.loads(path.read_text())
    written["scans"][written["reference"]]["stored_sha256"] = "0" * 64
    path.write_text(json.dumps(written))
    with pytest.raises(DataError, match=r"the body coordinates of scan .* are of an earlier content; run"):
        Store.open(tmp_path / "s")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    store_of(tmp_path, body_coordinates="affine")
    (tmp_path / "s" / REGISTERED).write_text("{")
    with pytest.raises(DataError, match=r"registered\.json: is damaged"):
        Store.open(tmp_path / "s")
