"""A CSV, TSV or JSON table with one row per scan."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pandas as pd

from medcl3d.core.columns import PATH_COLUMNS
from medcl3d.core.errors import DataError
from medcl3d.datasets.columns import normalise_columns
from medcl3d.datasets.dicom.series import PetUnits
from medcl3d.datasets.dicom.tilt import Tilt
from medcl3d.datasets.manifest import Manifest
from medcl3d.datasets.sources import SOURCES
from medcl3d.datasets.sources.series_rows import read_series_rows
from medcl3d.io.json_file import read_json, read_label_names
from medcl3d.io.table_file import read_rows

MANIFESTS = ("manifest.csv", "manifest.tsv", "manifest.json")
ROWS = 'a list of objects is needed, one per scan, as [{"path": "a.nii.gz", "patient": "001"}]'


@SOURCES.register("csv")
def csv(
    root: Path,
    raw: Path | None = None,
    *,
    manifest: str | None = None,
    allow_outside: bool = False,
    pet: PetUnits = "suv",
    tilt: Tilt = "error",
) -> Manifest:
    """Read a table whose paths are relative to its folder: CSV, TSV, or JSON as a list of objects.

    The column path is required. The columns scan (default: from the path) and patient (default: each scan is
    its own patient, with a warning) are recommended. Known columns: session, session_days, modality, frame
    (scans that share world millimetres), label (path of the segmentation), atlas (path of four lines of four
    numbers: an affine from the scan's world mm to an atlas's), class, split. All others are metadata. Known
    names may be written in capitals or with blanks, as ``Patient`` or ``Session Days``, which is reported;
    ``subject_id`` and similar names are refused if patient is missing. A `labels.json` beside the table,
    ``{"1": "name"}``, declares the classes of the segmentations; 0 is background. Scans in the folders of the
    listed files that are not listed themselves are counted.

    A path may also be a folder with a DICOM series (needs the extra `dicom`); the columns series
    (SeriesInstanceUID) and part choose one of several. Its modality and frame are read from the headers if
    the cells are empty.

    root       the table itself, or its folder
    raw        folder for one NIfTI file per DICOM series (`prepare` chooses it); None: nothing is written
    manifest   its name in that folder (default: manifest.csv, .tsv or .json)
    pet, tilt  for DICOM series, as in the source dicom

    Raises DataError, with the line, for an unreadable or ambiguous table.
    """
    path = _table(root, manifest)
    is_json = path.suffix.lower() == ".json"
    table, places = _objects(path) if is_json else _lines(path)
    table, notes = normalise_columns(table, str(path) if is_json else f"{path}:1")
    names = read_label_names(path.parent / "labels.json")
    series = read_series_rows(
        table, path.parent, raw, pet=pet, tilt=tilt, outside=allow_outside, places=places
    )
    notes = [*notes, *series.notes]
    made = Manifest.of(series.table, path.parent, names, outside=allow_outside, places=places, notes=notes)
    made = replace(made, faults=series.faults, unwritten=series.unwritten, written=series.written)
    why = f"NIfTI files beside the listed ones are not in {path.name} and are skipped"
    return made.with_skipped(_siblings(made), why=lambda _: why)


def _siblings(manifest: Manifest) -> list[Path]:
    """The files in the folders of the listed files. Other folders are not read."""
    table = manifest.table[~manifest.table["scan"].isin([*manifest.unwritten, *manifest.faults])]
    cells = [text for name in PATH_COLUMNS if name in table for text in table[name]]
    folders = sorted({Path(text).parent for text in cells if text and not Path(text).is_absolute()})
    found: list[Path] = []
    for folder in folders:
        with suppress(OSError):  # absent or unreadable: its files are then reported as missing
            names = sorted(os.listdir(manifest.root / folder))
            found += [folder / name for name in names if not name.startswith(".")]
    return found


def _table(root: Path, manifest: str | None) -> Path:
    """The path of the table. DataError if there is none, or several."""
    if manifest is not None:
        return root / manifest
    if not root.is_dir():
        return root
    there = [name for name in MANIFESTS if os.path.lexists(root / name)]
    if len(there) > 1:
        raise DataError(root, f"{' and '.join(there)} both exist", "choose one with manifest=NAME")
    if not there:
        remedy = "give the table itself as ROOT, or manifest=NAME"
        raise DataError(root, f"none of {', '.join(MANIFESTS)} exists", remedy)
    return root / there[0]


def _lines(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """A table as text, and the place of each row."""
    names, rows = read_rows(path)
    if not rows:
        raise DataError(path, "the manifest lists no scan", "write one line per scan")
    return pd.DataFrame(list(rows.values()), columns=names, dtype=str), [f"{path}:{line}" for line in rows]


def _objects(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """A JSON list of objects as text, with numbers as written, and the place of each object."""
    content = read_json(path, ROWS, numbers_as_text=True)
    if not isinstance(content, list) or not content or not all(isinstance(row, dict) for row in content):
        is_listed = isinstance(content, dict) and isinstance(content.get("training"), list)
        raise DataError(path, "is a MONAI file list; use the source decathlon" if is_listed else ROWS)
    for number, row in enumerate(content, start=1):
        for name, value in row.items():
            if isinstance(value, (dict, list)):
                problem = f"{name} of object {number} is a {type(value).__name__}"
                raise DataError(path, problem, "write text or a number")
    rows = [{name: _text(value) for name, value in row.items()} for row in content]
    table = pd.DataFrame(rows, dtype=object).fillna("")
    return table, [f"{path}: object {number}" for number in range(1, len(content) + 1)]


def _text(value: str | bool | None) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else value
