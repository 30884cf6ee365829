"""Body coordinates from the mask, or from an atlas."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcl3d.core.collection import Collection
from medcl3d.core.errors import DataError
from medcl3d.preprocessing.options import PrepareOptions
from medcl3d.preprocessing.prepare import prepare
from medcl3d.preprocessing.scan import read_affine
from medcl3d.store.store import Store
from tests.pairs.collections import collections


@given(collection=collections, seed=st.integers(0, 1000))
def test_the_origin_is_the_middle_of_the_body_and_the_unit_a_millimetre(
    collection: Collection, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    scans = rng.integers(0, len(collection), 10)
    middle = (collection.body_boxes[scans].sum(1) - 1) / 2
    assert np.allclose(collection.body.place(scans, collection.world(scans, middle)), 0, atol=1e-9)
    step = rng.normal(size=(10, 3))
    world = collection.world(scans, middle)
    assert np.allclose(collection.body.place(scans, world + step), step)
    back = np.array([collection.body.to_world(int(s), p) for s, p in zip(scans, step, strict=True)])
    assert np.allclose(back, world + step)


def write_scan(path: Path, affine: np.ndarray) -> None:
    voxels = (
        np.random.default_rng(len(path.stem) + ord(path.stem[0]))
        .uniform(50, 60, (12, 14, 10))
        .astype(np.float32)
    )
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)


def test_an_atlas_affine_of_the_manifest_reaches_the_keys(tmp_path: Path) -> None:
    atlas = np.array([[0.9, 0, 0, 4], [0, 1.1, 0.1, -7], [0, 0, 1, 30], [0, 0, 0, 1]])
    for name in "ab":
        write_scan(tmp_path / f"{name}.nii.gz", np.diag([2.0, 2.0, 3.0, 1.0]))
    np.savetxt(tmp_path / "a.txt", atlas)
    pd.DataFrame({"path": ["a.nii.gz", "b.nii.gz"], "atlas": ["a.txt", ""]}).to_csv(
        tmp_path / "manifest.csv", index=False
    )
    said: list[str] = []
    options = PrepareOptions(workers=1, intensity="none")
    prepare("csv", tmp_path, tmp_path / "out", options=options, say=said.append)
    assert any("1 of 2 scans have no atlas (for example b)" in line for line in said)
    collection = Store.open(tmp_path / "out").collection
    world = np.array([[3.0, 5.0, 7.0]])
    assert np.allclose(collection.body.place(np.array([0]), world)[0], (atlas @ [3, 5, 7, 1])[:3])
    middle = np.array([11.0, 13.0, 13.5])  # of voxel indices 5.5, 6.5, 4.5
    assert np.allclose(collection.body.place(np.array([1]), middle[None])[0], 0)
    assert "atlas" not in collection.columns


@pytest.mark.parametrize("body_coordinates", ["middle", "affine"])
def test_scans_of_one_frame_have_the_atlas_of_any_of_them(body_coordinates: str, tmp_path: Path) -> None:
    for name in "ab":
        write_scan(tmp_path / f"{name}.nii.gz", np.diag([2.0, 2.0, 3.0, 1.0]))
    np.savetxt(tmp_path / "a.txt", np.diag([0.9, 1.1, 1.0, 1.0]))
    table = pd.DataFrame(
        {"path": ["a.nii.gz", "b.nii.gz"], "atlas": ["", "a.txt"], "patient": "p", "frame": "f"}
    )
    table.to_csv(tmp_path / "manifest.csv", index=False)
    said: list[str] = []
    options = PrepareOptions(workers=1, intensity="none", test_fraction=0, body_coordinates=body_coordinates)
    prepare("csv", tmp_path, tmp_path / "out", options=options, say=said.append)
    body = Store.open(tmp_path / "out").collection.body
    assert np.allclose(body.from_world, np.diag([0.9, 1.1, 1.0, 1.0]))
    assert not any("atlas" in line for line in said)


def test_a_frame_keeps_the_atlas_of_a_scan_that_is_refused(tmp_path: Path) -> None:
    for name in "abc":
        write_scan(tmp_path / f"{name}.nii.gz", np.diag([2.0, 2.0, 3.0, 1.0]))
    (tmp_path / "b.nii.gz").write_bytes(b"")
    np.savetxt(tmp_path / "a.txt", np.diag([0.9, 1.1, 1.0, 1.0]))
    table = pd.DataFrame({"path": ["a.nii.gz", "b.nii.gz", "c.nii.gz"], "atlas": ["", "a.txt", "a.txt"]})
    table.assign(patient="p", frame=["f", "f", "g"]).to_csv(tmp_path / "manifest.csv", index=False)
    options = PrepareOptions(workers=1, intensity="none", test_fraction=0, body_coordinates="affine")
    prepare("csv", tmp_path, tmp_path / "out", options=options)
    body = Store.open(tmp_path / "out").collection.body
    assert np.allclose(body.from_world, np.diag([0.9, 1.1, 1.0, 1.0]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 0 0\n0 1 0\n0 0 1\n", r"contains \(3, 3\) numbers"),
        ("1 0 0 x\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "could not convert"),
        ("1 0 0 0\n0 1 0 0\n0 0 0 0\n0 0 0 1\n", "singular"),
        ("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 1 1\n", "the last 0 0 0 1"),
    ],
)
def test_an_invalid_affine_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "bad.txt").write_text(text)
    with pytest.raises(DataError, match=words):
        read_affine(tmp_path / "bad.txt")
    with pytest.raises(DataError, match=r"none\.txt"):
        read_affine(tmp_path / "none.txt")


def test_a_pipe_as_affine_is_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DataError, match=r"pipe\.txt: is a pipe or a device"):
        read_affine(tmp_path / "pipe.txt")


def test_a_missing_affine_is_a_missing_file(tmp_path: Path) -> None:
    for name in "abc":
        write_scan(tmp_path / f"{name}.nii.gz", np.eye(4))
    table = pd.DataFrame({"path": ["a.nii.gz", "b.nii.gz", "c.nii.gz"], "atlas": ["no1.txt", "no2.txt", ""]})
    table.to_csv(tmp_path / "manifest.csv", index=False)
    with pytest.raises(DataError, match=r"2 files of the manifest are missing.*no1\.txt"):
        prepare("csv", tmp_path, tmp_path / "out", options=PrepareOptions(workers=1, intensity="none"))
