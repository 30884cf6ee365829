"""The scans of a folder before they have a table: NIfTI files and DICOM series, with their grids."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from medcl3d.core.errors import DataError, MachineError
from medcl3d.core.notes import without_names
from medcl3d.datasets.dicom.files import NOT_DICOM
from medcl3d.datasets.dicom.order import affine_of
from medcl3d.datasets.dicom.series import Series
from medcl3d.datasets.label_pairs import Grid
from medcl3d.datasets.path_roles import stem_of
from medcl3d.datasets.sources.dicom import dicom
from medcl3d.downstream.predict.inputs import is_dicom
from medcl3d.io.nifti import read_header
from medcl3d.io.progress import track
from medcl3d.io.walk import VOLUMES, files_under, skipped_notes
from medcl3d.preprocessing.intensity_kind import kind_warnings, label_warnings
from medcl3d.preprocessing.read_scan import MANY_CLASSES, read_image

MAX_READ = 60  # files of which the voxels are read
PER_GROUP = 2  # of them with similar names, if they agree


@dataclass(frozen=True)
class ScanFiles:
    """What a folder holds.

    grids   path of a NIfTI file, or of a DICOM series as ``folder#number``, -> its grid
    series  path of a DICOM series -> its row in the manifest of the source `dicom`
    notes   on files that are not used
    """

    grids: Mapping[str, Grid]
    series: Mapping[str, Mapping[str, str]]
    notes: tuple[str, ...]

    @property
    def volumes(self) -> list[str]:
        """The paths of NIfTI files."""
        return [path for path in self.grids if path not in self.series]


def find_scans(root: Path) -> ScanFiles:
    """Read the headers of all NIfTI files and DICOM series below a folder. DataError if there is none."""
    closed: list[OSError] = []
    files = list(files_under(root, closed.append))
    grids: dict[str, Grid] = {}
    faults = []
    for path in track([file for file in files if file.name.endswith(VOLUMES)], "reading headers"):
        try:
            header = read_header(root / path)
            grids[path.as_posix()] = Grid(header.shape, header.affine)
        except DataError as error:
            faults.append(str(error))
    others = [file for file in files if not file.name.endswith(VOLUMES)]
    are_dicom = {file for file in others if is_dicom(root / file)}
    series, notes = _series(root) if are_dicom else ({}, [])
    if faults:
        notes.append(f"{len(faults)} NIfTI files cannot be read and are left out: {'; '.join(faults[:3])}")
    notes += skipped_notes(root, [file for file in others if file not in are_dicom], closed)
    if not grids and not series:
        raise DataError(root, "no NIfTI file and no DICOM series", "; ".join(notes) or "the folder is empty")
    return ScanFiles(
        {**grids, **{path: grid for path, (grid, _) in series.items()}},
        {path: row for path, (_, row) in series.items()},
        tuple(notes),
    )


def _series(root: Path) -> tuple[dict[str, tuple[Grid, Mapping[str, str]]], list[str]]:
    """The DICOM series below a folder, numbered after # if it has several; and notes on the others."""
    try:
        made = dicom(root, None)
    except (DataError, MachineError) as error:
        return {}, [f"DICOM files are left out: {error}"]
    folders: dict[str, list[str]] = defaultdict(list)
    for scan, series in made.unwritten.items():
        folders[_folder_of(root, series)].append(scan)
    records = made.table.astype(str).to_dict("records")
    rows = {row["scan"]: {str(name): str(text) for name, text in row.items()} for row in records}
    found: dict[str, tuple[Grid, Mapping[str, str]]] = {}
    for folder, scans in folders.items():
        below = [
            one for other, ones in folders.items() if f"{other}/".startswith(f"{folder}/") for one in ones
        ]
        for number, scan in enumerate(scans):
            slices = made.unwritten[scan].slices
            grid = Grid((*slices[0].shape, len(slices)), affine_of(slices))
            row = {**rows[scan], "folder": folder}
            if folder != "." and len(below) == 1:
                row |= {"series": "", "part": ""}
            name = root.resolve().name if folder == "." else folder
            found[f"{name}#{number}" if len(scans) > 1 or folder == "." else folder] = grid, row
    # Other files have notes of their own, and folders give the patient of a series without PatientID.
    known = (NOT_DICOM, "their first folder is the patient")
    notes = [note for note in made.notes if not without_names(note).endswith(known)]
    return found, [*notes, *made.faults.values()]


def _folder_of(root: Path, series: Series) -> str:
    """The folder of all slices of a series, relative to the root."""
    folder = os.path.commonpath([str(one.header.path.parent) for one in series.slices])
    return PurePosixPath(os.path.relpath(folder, root)).as_posix()


# label: a few whole numbers; whole: at most MANY_CLASSES of them, an image or a label map; image; ct; or "",
# unreadable or constant. And the whole numbers.
_Content = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Contents:
    """What the voxels of some files show.

    are_labels  paths with a few whole numbers only
    are_images  paths with grey values
    are_hu      paths with values like those of CT
    values      path -> its whole numbers
    """

    are_labels: frozenset[str]
    are_images: frozenset[str]
    are_hu: frozenset[str]
    values: Mapping[str, tuple[int, ...]]


def sample_contents(root: Path, paths: Sequence[str]) -> Contents:
    """Read the voxels of a few files of each group of similar names; the others of a group are like them.

    A group whose files differ is read whole, up to `MAX_READ` files in all.
    """
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in paths:
        parent = PurePosixPath(path).parent.name
        groups[re.sub(r"\d+", "#", parent), re.sub(r"\d+", "#", stem_of(path))].append(path)
    ordered = sorted(groups.values(), key=len, reverse=True)
    read: dict[str, _Content] = {}
    first = [path for group in ordered for path in group[:: max(1, len(group) // PER_GROUP)][:PER_GROUP]]
    for path in track(first[:MAX_READ], "reading voxels"):
        read[path] = _content(root / path)
    for group in ordered:
        if len({read[path][0] for path in group if path in read}) > 1:
            read |= {
                path: _content(root / path) for path in group[: MAX_READ - len(read)] if path not in read
            }
    found: dict[str, set[str]] = defaultdict(set)
    for group in ordered:
        seen = [read[path] for path in group if path in read]
        for path in group if seen else ():
            found[read.get(path, seen[0])[0]].add(path)
    values = {path: numbers for path, (_, numbers) in read.items() if numbers}
    labels, images, hu = (frozenset(found[kind]) for kind in ("label", "image", "ct"))
    return Contents(labels, images | hu, hu, values)


def _content(path: Path) -> _Content:
    """The kind of a file by its voxels."""
    try:
        voxels = read_image(path, channels="first", nonfinite="zero").voxels
    except DataError:  # reported by `check` and `prepare`
        return "", ()
    if any("look like CT" in text for text in kind_warnings(voxels, "mri")):
        return "ct", ()
    values = np.unique(voxels)
    if len(values) > MANY_CLASSES or values[0] < 0 or (values != np.round(values)).any():
        return "image", ()
    return ("label" if label_warnings(voxels) else "whole"), tuple(values.astype(int).tolist())


def ras_grids(grids: Sequence[Grid]) -> pd.DataFrame:
    """Shapes and spacings in mm along right, front and head, one row per grid."""
    from nibabel.orientations import io_orientation

    rows = []
    for grid in grids:
        order = np.argsort(io_orientation(grid.affine)[:, 0])
        spacing_mm = np.linalg.norm(grid.affine[:3, :3], axis=0)[order]
        rows.append((*np.array(grid.shape[:3])[order].tolist(), *spacing_mm.round(4).tolist()))
    return pd.DataFrame(rows, columns=["x", "y", "z", "x_mm", "y_mm", "z_mm"])
