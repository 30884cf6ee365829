from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medcl3d.core.errors import DataError
from medcl3d.datasets.sources.medmnist import medmnist
from medcl3d.preprocessing.options import PrepareOptions
from medcl3d.preprocessing.prepare import prepare
from medcl3d.store.splits import read_split
from medcl3d.store.store import Store

SIZES = {"train": 5, "val": 2, "test": 3}


def write(path: Path, change: dict[str, np.ndarray] | None = None, *, shapes: bool = True) -> Path:
    rng = np.random.default_rng(0)
    arrays = {}
    for part, num in SIZES.items():
        images = rng.integers(0, 256, (num, 9, 8, 7), dtype=np.uint8)
        arrays[f"{part}_images"] = np.where(images > 128, 255, 0).astype(np.uint8) if shapes else images
        arrays[f"{part}_labels"] = rng.integers(0, 2, (num, 1), dtype=np.uint8)
    np.savez(path, **{name: value for name, value in (arrays | (change or {})).items() if value is not None})
    return path


def test_the_official_split_and_the_classes_are_kept(tmp_path: Path) -> None:
    file = write(tmp_path / "toy3d.npz")
    lines: list[str] = []
    prepare("medmnist", file, tmp_path / "out", options=PrepareOptions(workers=1), say=lines.append)
    assert not [line for line in lines if "warning" in line or "intensity=" in line], (
        "no option to set, and no warning"
    )
    store = Store.open(tmp_path / "out")
    table = store.collection.table
    split = read_split(tmp_path / "out" / "split.json", table["patient"])
    arrays = np.load(file)
    for row, about in table.iterrows():
        number = int(about["scan"][-5:])
        np.testing.assert_array_equal(
            store.read_volume(row)[0], arrays[f"{about['part']}_images"][number] / 255
        )
        assert about["class"] == str(arrays[f"{about['part']}_labels"][number, 0])
        assert (about["patient"] in split.test) == (about["part"] == "test")
    assert store.intensity()["kind"] == "none"
    again = prepare("medmnist", file, tmp_path / "out", options=PrepareOptions(workers=1))
    assert again.num_unchanged == sum(SIZES.values()), "the command resumes with all scans prepared"


def test_grey_values_stay_grey(tmp_path: Path) -> None:
    file = write(tmp_path / "grey3d.npz", shapes=False)
    manifest = medmnist(tmp_path, tmp_path / "raw")
    assert set(manifest.table["modality"]) == {"unknown"} and not any(
        "two values" in note for note in manifest.notes
    )
    write(tmp_path / "other3d.npz")
    with pytest.raises(DataError, match=r"one npz is needed, found: grey3d\.npz, other3d\.npz"):
        medmnist(tmp_path, tmp_path / "raw")
    assert len(medmnist(tmp_path, tmp_path / "raw", file=file.name)) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val_images": None}, "val_images or val_labels is missing"),
        ({"test_labels": np.zeros((2, 1), np.uint8)}, "3 test_images and 2 test_labels"),
        ({"train_images": np.zeros((5, 8, 8), np.uint8)}, "a 3-D set"),
    ],
)
def test_another_file_is_refused_in_one_line(
    tmp_path: Path, change: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        medmnist(write(tmp_path / "toy.npz", change), tmp_path / "raw")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "toy.npz")
    file.write_bytes(file.read_bytes()[:-400])
    with pytest.raises(DataError, match="cannot be read as npz"):
        medmnist(file, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_real_adrenal_glands(real: Path, tmp_path: Path) -> None:
    manifest = medmnist(real / "medmnist" / "adrenalmnist3d.npz", tmp_path / "raw")
    assert manifest.table.groupby("part").size().to_dict() == {"test": 298, "train": 1188, "val": 98}
    assert set(manifest.table["class"]) == {"0", "1"} and set(manifest.table["modality"]) == {"shape"}


@pytest.mark.parametrize("name", ["adrenalmnist3d", "adrenalmnist3d_64"])
def test_real_shapes_are_prepared_correctly_by_default(real: Path, tmp_path: Path, name: str) -> None:
    with np.load(real / "medmnist" / f"{name}.npz") as archive:
        some = {key: archive[key][:4] for key in archive.files}
    np.savez(tmp_path / f"{name}.npz", **some)
    lines: list[str] = []
    done = prepare(
        "medmnist",
        tmp_path / f"{name}.npz",
        tmp_path / "out",
        options=PrepareOptions(workers=1),
        say=lines.append,
    )
    assert (done.num_ok, done.num_refused) == (12, 0) and not [
        line for line in lines if line.startswith(("warning", "refused"))
    ]
    store = Store.open(tmp_path / "out")
    assert all(np.unique(store.read_volume(scan)).tolist() == [0.0, 1.0] for scan in range(12))
