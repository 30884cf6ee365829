"""A table of one's own, as CSV, TSV or JSON, with one row a scan."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medcl3d.data.json_file import read_json, read_label_names
from medcl3d.data.manifest import Manifest, read_table
from medcl3d.data.sources import SOURCES
from medcl3d.errors import DataError

USUAL = ("manifest.csv", "manifest.tsv", "manifest.json")
ROWS = 'needed is a list of objects, one a scan, as [{"path": "a.nii.gz", "patient": "001"}]'


@SOURCES.register("csv")
def csv(root: Path, *, manifest: str | None = None, allow_outside: bool = False) -> Manifest:
    """Read a table whose paths are relative to its folder: CSV, TSV, or JSON as a list of objects.

    Needed is the column path; scan (default: from the path) and patient (default: each scan its own, said
    aloud) should be there. Known: session, session_days, modality, frame (scans that
    share world millimetres), label (path of the segmentation), atlas (path of four lines of four numbers: an affine from
    the scan's world mm to an atlas's), class, split. All others are metadata.
    A `labels.json` beside it, ``{"1": "name"}``, declares the classes of the segmentations.

    root      the table itself, or the folder that holds it
    manifest  its name in that folder (default: manifest.csv, .tsv or .json)

    Raises DataError for a table that is unreadable or ambiguous.
    """
    path = root if root.is_file() else root / (manifest or _usual(root))
    table = _rows(path) if path.suffix.lower() == ".json" else read_table(path)
    return Manifest.of(table, path.parent, read_label_names(path.parent / "labels.json"), outside=allow_outside)


def _usual(root: Path) -> str:
    """The one of the usual names that is there. DataError where two are."""
    there = [name for name in USUAL if (root / name).exists()]
    if len(there) > 1:
        raise DataError(f"{root}: {' and '.join(there)} are both there; say which with manifest=NAME")
    return there[0] if there else USUAL[0]


def _rows(path: Path) -> pd.DataFrame:
    """A JSON list of objects as text, numbers as they are written."""
    content = read_json(path, ROWS, numbers_as_text=True)
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise DataError(f"{path}: {ROWS}")
    for number, row in enumerate(content, start=1):
        for name, value in row.items():
            if isinstance(value, (dict, list)):
                raise DataError(f"{path}: {name} of object {number} is a {type(value).__name__}; write text or a number")
    return pd.DataFrame([{name: _text(value) for name, value in row.items()} for row in content], dtype=object)


def _text(value: str | bool | None) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else value
