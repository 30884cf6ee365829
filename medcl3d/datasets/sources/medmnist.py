"""MedMNIST 3-D: arrays of one npz with an official split, written as one NIfTI file per sample."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd

from medcl3d.core.errors import DataError
from medcl3d.core.notes import Counted
from medcl3d.datasets.manifest import Manifest
from medcl3d.datasets.sources import SOURCES
from medcl3d.io.atomic import open_atomic
from medcl3d.io.nifti import nifti_bytes
from medcl3d.io.walk import skipped_notes

PARTS = {"train": "train", "val": "train", "test": "test"}  # part of the npz -> side of the split


@SOURCES.register("medmnist")
def medmnist(root: Path, raw: Path | None, *, file: str | None = None) -> Manifest:
    """Read an npz of MedMNIST 3-D. Source: Yang et al. 2023, MedMNIST v2, Scientific Data.

    root  the npz, or its folder
    raw   folder for one NIfTI file per sample (`prepare` chooses it); None: nothing is written
    file  which npz of the folder (default: the only one)

    The official test part is the test split; the train and validation parts are the training side,
    distinguished by the column `part`. The label is the column `class`. Shapes (two values, as
    AdrenalMNIST3D) are written as 0 and 1 and keep these values: train with the recipe `shape`. The sets have
    neither patient ids nor voxel sizes: each sample counts as a patient, and a voxel as 1 mm, with the
    world's origin at the centre of the sample.

    Raises DataError if the file is not such an npz.
    """
    path = _npz(root, file)
    arrays = _arrays(path)
    skipped = _skipped(path, arrays, root)
    is_shape = all(np.isin(arrays[f"{part}_images"], (0, 255)).all() for part in PARTS)
    rows = []
    for part, split in PARTS.items():
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            scan = f"{path.stem}_{part}_{number:05d}"
            if raw is not None:
                _write(raw / f"{scan}.nii.gz", (image > 0).astype(np.uint8) if is_shape else image)
            rows.append(
                {
                    "scan": scan,
                    "patient": scan,
                    "modality": "shape" if is_shape else "unknown",
                    "path": f"{scan}.nii.gz",
                    "class": "+".join(str(int(value)) for value in np.ravel(label)),
                    "split": split,
                    "part": part,
                }
            )
    why = "the set has neither patient ids nor voxel sizes"
    notes = [f"each sample counts as its own patient, and a voxel as 1 mm: {why}"]
    if is_shape:
        notes.append("the voxels have two values, stored as 0 and 1: train with views: shape")
    return Manifest.of(pd.DataFrame(rows), raw or root, notes=[*notes, *skipped])


def _skipped(path: Path, arrays: Mapping[str, np.ndarray], root: Path) -> list[str]:
    """Notes on arrays of the npz and files of the folder that are skipped."""
    counts, others = Counted(), list[Path]()
    for name in sorted(set(arrays) - {f"{part}_{of}" for part in PARTS for of in ("images", "labels")}):
        counts.add(f"arrays of {path.name} are skipped", name)
    for name in sorted(os.listdir(root)) if root.is_dir() else ():
        if not name.endswith(".npz"):
            others.append(Path(name))
        elif name != path.name:
            counts.add(f"other npz files beside {path.name} are skipped", name)
    return [*counts.notes(), *skipped_notes(root, others)]


def _npz(root: Path, file: str | None) -> Path:
    if root.is_file():
        return root
    found = sorted(root.glob("*.npz")) if file is None else [root / file]
    if len(found) != 1 or not found[0].is_file():
        names = ", ".join(path.name for path in sorted(root.glob("*.npz"))) or "none"
        remedy = "give the file itself as ROOT, or file=NAME"
        raise DataError(root, f"one npz is needed, found: {names}", remedy)
    return found[0]


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """All six arrays, validated: ``[N, D, H, W]`` uint8 and as many labels."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        problem = f"cannot be read as npz ({str(error).splitlines()[0]})"
        raise DataError(path, problem, "fetch it again") from None
    for part in PARTS:
        images, labels = arrays.get(f"{part}_images"), arrays.get(f"{part}_labels")
        if images is None or labels is None:
            problem = f"{part}_images or {part}_labels is missing"
            raise DataError(path, problem, f"the file has {', '.join(arrays)}")
        if images.ndim != 4 or images.dtype != np.uint8:
            problem = f"{part}_images is {images.dtype}{list(images.shape)}"
            raise DataError(path, problem, "uint8 [N, D, H, W] is needed (a 3-D set)")
        if len(images) != len(labels):
            raise DataError(path, f"{len(images)} {part}_images and {len(labels)} {part}_labels")
    return arrays


def _write(path: Path, voxels: np.ndarray) -> None:
    """Write a volume as gzipped NIfTI, with the same bytes every time; an identical file is kept."""
    affine = np.eye(4)
    # Origin at the centre: at a corner it would look like a lost voxel size.
    affine[:3, 3] = [(1 - n) / 2 for n in voxels.shape]
    content = nifti_bytes(nibabel.Nifti1Image(voxels, affine))
    if path.exists() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_atomic(path) as out:
        out.write(content)
