"""A table of one's own, as CSV, TSV or JSON, with one row a scan."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pandas as pd

from medcl3d.data.columns import PATH_COLUMNS, meant_columns
from medcl3d.data.json_file import read_json, read_label_names
from medcl3d.data.manifest import Manifest
from medcl3d.data.sources import SOURCES
from medcl3d.data.table_file import read_rows
from medcl3d.errors import DataError

USUAL = ("manifest.csv", "manifest.tsv", "manifest.json")
ROWS = 'needed is a list of objects, one a scan, as [{"path": "a.nii.gz", "patient": "001"}]'


@SOURCES.register("csv")
def csv(root: Path, *, manifest: str | None = None, allow_outside: bool = False) -> Manifest:
    """Read a table whose paths are relative to its folder: CSV, TSV, or JSON as a list of objects.

    Needed is the column path; scan (default: from the path) and patient (default: each scan its own, said
    aloud) should be there. Known: session, session_days, modality, frame (scans that
    share world millimetres), label (path of the segmentation), atlas (path of four lines of four numbers: an affine from
    the scan's world mm to an atlas's), class, split. All others are metadata. Known names may be written in capitals or with
    blanks, as ``Patient`` or ``Session Days``, which is said; ``subject_id`` and the like are asked about.
    A `labels.json` beside it, ``{"1": "name"}``, declares the classes of the segmentations; 0 is background. Scans that lie
    in the folders of those that are listed, and are not listed themselves, are counted.

    root      the table itself, or the folder that holds it
    manifest  its name in that folder (default: manifest.csv, .tsv or .json)

    Raises DataError for a table that is unreadable or ambiguous, with the line.
    """
    path = _table(root, manifest)
    table, places = _objects(path) if path.suffix.lower() == ".json" else _lines(path)
    table, notes = meant_columns(table, f"{path}:1" if path.suffix.lower() != ".json" else str(path))
    names = read_label_names(path.parent / "labels.json")
    made = Manifest.of(table, path.parent, names, outside=allow_outside, places=places, notes=notes)
    return made.noting(_beside(made), why=lambda _: f"NIfTI files beside the listed ones are not in {path.name}, and not taken")


def _beside(manifest: Manifest) -> list[Path]:
    """The files in the folders that the table names files in; not all below its own folder, which may hold anything."""
    cells = [text for name in PATH_COLUMNS if name in manifest.table for text in manifest.table[name]]
    folders = sorted({Path(text).parent for text in cells if text and not Path(text).is_absolute()})
    found: list[Path] = []
    for folder in folders:
        with suppress(OSError):  # absent, or closed: its files are then missing, which is said of each
            found += [folder / name for name in sorted(os.listdir(manifest.root / folder)) if not name.startswith(".")]
    return found


def _table(root: Path, manifest: str | None) -> Path:
    """The file that is meant. DataError where nothing is there, or two tables are."""
    if manifest is not None:
        return root / manifest
    if not root.is_dir():
        return root
    there = [name for name in USUAL if os.path.lexists(root / name)]
    if len(there) > 1:
        raise DataError(f"{root}: {' and '.join(there)} are both there; say which with manifest=NAME")
    if not there:
        raise DataError(f"{root}: none of {', '.join(USUAL)} is there; give the table itself as ROOT, or manifest=NAME")
    return root / there[0]


def _lines(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """A table as text, and where each of its rows stands."""
    names, rows = read_rows(path)
    if not rows:
        raise DataError(f"{path}: the manifest lists no scan; give a line to each")
    return pd.DataFrame(list(rows.values()), columns=names, dtype=str), [f"{path}:{line}" for line in rows]


def _objects(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """A JSON list of objects as text, numbers as they are written, and where each stands."""
    content = read_json(path, ROWS, numbers_as_text=True)
    if not isinstance(content, list) or not content or not all(isinstance(row, dict) for row in content):
        is_listed = isinstance(content, dict) and isinstance(content.get("training"), list)
        raise DataError(f"{path}: {'lists of files as MONAI has them are read by the source decathlon' if is_listed else ROWS}")
    for number, row in enumerate(content, start=1):
        for name, value in row.items():
            if isinstance(value, (dict, list)):
                raise DataError(f"{path}: {name} of object {number} is a {type(value).__name__}; write text or a number")
    table = pd.DataFrame([{name: _text(value) for name, value in row.items()} for row in content], dtype=object).fillna("")
    return table, [f"{path}: object {number}" for number in range(1, len(content) + 1)]


def _text(value: str | bool | None) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else value
