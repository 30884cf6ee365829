"""MedMNIST 3-D: arrays of one npz with an official split, written out as one NIfTI file a sample."""

from __future__ import annotations

import gzip
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd

from medcl3d.data.atomic import replacing
from medcl3d.data.manifest import Manifest
from medcl3d.data.notes import Counted
from medcl3d.data.sources import SOURCES
from medcl3d.data.walk import not_taken
from medcl3d.errors import DataError

PARTS = {"train": "train", "val": "train", "test": "test"}  # the test side stays the test side


@SOURCES.register("medmnist")
def medmnist(root: Path, raw: Path | None, *, file: str | None = None) -> Manifest:
    """Read an npz of MedMNIST 3-D. Source: Yang et al. 2023, MedMNIST v2, Scientific Data.

    root  the npz, or the folder that holds it
    raw   where the samples are written, each as a file (`prepare` chooses it); None: nowhere
    file  which npz of the folder (default: the only one)

    The official test part is the test split; train and validation parts are the training side, told apart by the column
    `part`. The label is the column `class`. Shapes (two values, as AdrenalMNIST3D) are written as 0 and 1 and prepared as they
    are: train with the recipe `shape`. The sets carry neither patients nor a voxel size: each sample counts as a patient, and a voxel
    as 1 mm, with the world's origin in the middle of the sample.

    Raises DataError where it is no such npz.
    """
    path = _npz(root, file)
    arrays = _arrays(path)
    left = _left(path, arrays, root)
    is_shape = all(np.isin(arrays[f"{part}_images"], (0, 255)).all() for part in PARTS)
    rows = []
    for part, split in PARTS.items():
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            scan = f"{path.stem}_{part}_{number:05d}"
            if raw is not None:
                _write(raw / f"{scan}.nii.gz", (image > 0).astype(np.uint8) if is_shape else image)
            about = {"class": "+".join(str(int(value)) for value in np.ravel(label)), "split": split, "part": part}
            rows.append({"scan": scan, "patient": scan, "modality": "shape" if is_shape else "unknown", "path": f"{scan}.nii.gz"} | about)
    notes = ["each sample counts as a patient of its own, and a voxel as 1 mm: the set says neither"]
    if is_shape:
        notes.append("its voxels take two values, stored as 0 and 1: train with views: shape")
    return Manifest.of(pd.DataFrame(rows), raw or root, notes=[*notes, *left])


def _left(path: Path, arrays: Mapping[str, np.ndarray], root: Path) -> list[str]:
    """Notes on arrays of the npz, and on files of the folder, that are not taken."""
    left = Counted()
    for name in sorted(set(arrays) - {f"{part}_{of}" for part in PARTS for of in ("images", "labels")}):
        left.add(f"arrays of {path.name} are not taken", name)
    files = [Path(name) for name in sorted(os.listdir(root)) if name != path.name] if root.is_dir() else []
    for file in files:
        if file.suffix == ".npz":
            left.add(f"other npz files beside {path.name} are not taken", str(file))
    return [*left.notes(), *not_taken(root, (file for file in files if file.suffix != ".npz"))]


def _npz(root: Path, file: str | None) -> Path:
    if root.is_file():
        return root
    found = sorted(root.glob("*.npz")) if file is None else [root / file]
    if len(found) != 1 or not found[0].is_file():
        names = ", ".join(path.name for path in sorted(root.glob("*.npz"))) or "none"
        raise DataError(f"{root}: which npz? there are {names}; give the file itself as ROOT, or file=NAME")
    return found[0]


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """All six arrays, checked: ``[N, D, H, W]`` uint8 and as many labels."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path}: cannot be read as npz ({str(error).splitlines()[0]}); fetch it again") from None
    for part in PARTS:
        images, labels = arrays.get(f"{part}_images"), arrays.get(f"{part}_labels")
        if images is None or labels is None:
            raise DataError(f"{path}: {part}_images or {part}_labels is missing; there are {', '.join(arrays)}")
        if images.ndim != 4 or images.dtype != np.uint8:
            raise DataError(f"{path}: {part}_images is {images.dtype}{list(images.shape)}; uint8 [N, D, H, W] is needed (a 3-D set)")
        if len(images) != len(labels):
            raise DataError(f"{path}: {len(images)} {part}_images and {len(labels)} {part}_labels")
    return arrays


def _write(path: Path, voxels: np.ndarray) -> None:
    """A volume as gzipped NIfTI, the same bytes every time; left alone where it is there already."""
    affine = np.eye(4)
    affine[:3, 3] = [(1 - n) / 2 for n in voxels.shape]  # an origin at a corner is how files look whose voxel size was lost
    content = gzip.compress(nibabel.Nifti1Image(voxels, affine).to_bytes(), compresslevel=1, mtime=0)
    if path.exists() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as out:
        out.write(content)
