"""The manifest: which files there are, and of whom, one row a scan."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from medcl3d.errors import DataError

if TYPE_CHECKING:
    from medcl3d.data.dicom.series import Series

# Columns with a meaning of their own; every other column of a manifest is metadata.
ID_COLUMNS = ("scan", "patient", "session", "modality", "frame", "class")
KNOWN_COLUMNS = (*ID_COLUMNS, "session_days", "path", "label", "atlas", "split")
PATH_COLUMNS = ("path", "label", "atlas")
CONSTANT_COLUMNS = ("sex",)  # of a patient

NO_PATIENTS = (
    "there are no patient ids, so every scan counts as a patient of its own; two scans of one person may then "
    "stand on both sides of the split (a column `patient` in a csv manifest prevents that)"
)
MISSING = ("", "n/a")  # BIDS writes n/a; NA may be the name of a site


@dataclass(frozen=True)
class Manifest:
    """Which files there are, and of whom: one row a scan.

    table        every id as text; `path`, `label` and `atlas` relative to `root` ("" where there is none)
    root         the folder that paths are resolved against
    label_names  class -> name, empty where none were declared
    outside      paths may leave the root
    notes        what a user has to know of it
    faults       scan -> why its source could not make a file of it
    unwritten    scan -> the DICOM series that its file would be made of, where a source was asked to write none
    """

    table: pd.DataFrame
    root: Path
    label_names: dict[int, str] = field(default_factory=dict)
    outside: bool = False
    notes: tuple[str, ...] = ()
    faults: Mapping[str, str] = field(default_factory=dict)
    unwritten: Mapping[str, Series] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.table)

    @staticmethod
    def of(table: pd.DataFrame, root: Path, label_names: Mapping[int, str] | None = None, *, outside: bool = False) -> Manifest:
        """Fill the defaults in and refuse what is ambiguous. Raises DataError naming the rows."""
        table = table.astype(object).where(table.notna(), "").astype(str).apply(lambda column: column.str.strip())
        if "path" not in table:
            raise DataError(f"{root}: the manifest has no column 'path'; it has {list(table.columns)}")
        notes: list[str] = []
        if "scan" not in table:
            table["scan"] = table["path"].map(_scan_id)
        if "patient" not in table:
            table["patient"] = table["scan"]
            notes.append(NO_PATIENTS)
        for name in ("scan", "patient", "path"):
            empty = np.flatnonzero(table[name] == "")
            if len(empty):
                raise DataError(f"{root}: column {name!r} is empty in row {_line(empty[0])} of the manifest; every scan needs one")
        if not len(table):
            raise DataError(f"{root}: the manifest lists no scan")
        for name, default in (("session", "1"), ("modality", "unknown"), ("label", ""), ("split", "")):
            table[name] = table.get(name, default)
        table["frame"] = table["frame"].where(table["frame"] != "", table["scan"]) if "frame" in table else table["scan"]
        _refuse_ambiguous(table, root)
        first = [c for c in KNOWN_COLUMNS if c in table]
        table = table[first + [c for c in table if c not in first]].reset_index(drop=True)
        return Manifest(table, Path(root), dict(label_names or {}), outside, tuple(notes))

    def locate(self, text: str) -> Path:
        """The file that a path of the manifest means. DataError where it leaves the root and may not."""
        path = Path(text)
        full = self.root / path
        if self.outside:
            return full
        inside = f"{self.root}: path {text!r} of the manifest"
        if path.is_absolute() or ".." in path.parts:
            raise DataError(f"{inside} leaves the root; move the file there, or set allow_outside")
        try:
            if not full.is_symlink() and self._lies_inside(full.parent):
                return full
            target = full.resolve()
        except (OSError, RuntimeError):
            raise DataError(f"{inside} is a loop of links") from None
        if not target.is_relative_to(self._target):
            raise DataError(f"{inside} is a link out of the root, to {target}; copy the file, or set allow_outside")
        return full

    @cached_property
    def _target(self) -> Path:
        return self.root.resolve()

    @cached_property
    def _insiders(self) -> dict[Path, bool]:
        return {}

    def _lies_inside(self, folder: Path) -> bool:
        """Whether a folder's links end under the root: asked once a folder, since following every part of every path takes longest."""
        if folder not in self._insiders:
            self._insiders[folder] = folder.resolve().is_relative_to(self._target)
        return self._insiders[folder]

    def missing(self) -> list[str]:
        """Paths of images, labels and affines that are not there."""
        table = self.table[~self.table["scan"].isin(list(self.faults))]
        paths = pd.concat([table[name] for name in PATH_COLUMNS if name in table])
        return [p for p in paths[paths != ""].unique() if not self.locate(p).exists()]

    def say_missing(self, missing: Sequence[str]) -> str:
        """One line: how many files are missing, the first ten, and where they were looked for."""
        return f"{len(missing)} files of the manifest are missing under {self.root.resolve()}: {', '.join(missing[:10])}"


def read_table(path: Path) -> pd.DataFrame:
    """A CSV or TSV as text, ``001`` and ``NA`` kept. Raises DataError: encoding, ragged rows, duplicate columns."""
    names, rows = read_rows(path)
    return pd.DataFrame(rows, columns=names, dtype=str)


def read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """The column names of a table and its rows, where a data frame for each of many small tables would cost more than reading them."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        row = raw[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{row}: the text is not UTF-8 (latin-1?); save the table as UTF-8") from None
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(cell.strip() for cell in row)]
    if not rows:
        raise DataError(f"{path}: the table is empty")
    names = [name.strip() for name in rows[0]]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise DataError(f"{path}:1: columns {twice} occur twice")
    for line, cells in enumerate(rows[1:], start=2):
        if len(cells) != len(names):
            raise DataError(f"{path}:{line}: {len(cells)} cells under {len(names)} column names")
    return names, rows[1:]


def _scan_id(path: str) -> str:
    """``a/b/scan.nii.gz`` -> ``a_b_scan``: what a path alone can tell, and no two paths tell the same."""
    stem = re.sub(r"\.(nii|nii\.gz|nrrd|mha)$", "", path, flags=re.IGNORECASE)
    return re.sub(r"[\\/]+", "_", stem.removeprefix("./"))


def _line(index: int) -> int:
    return int(index) + 2  # the first row of a table stands under its header


def _refuse_ambiguous(table: pd.DataFrame, root: Path) -> None:
    """Two scans of one id, one file listed twice, text among numbers, an unknown split."""
    for name, what in (("scan", "scan id"), ("path", "file")):
        values = table[name] if name == "scan" else table[name].map(lambda p: str(Path(p)))
        twice = table.index[values.duplicated(keep=False)]
        if len(twice):
            same = values[twice[0]]
            rows = [_line(i) for i in twice if values[i] == same]
            raise DataError(f"{root}: the {what} {same!r} stands in rows {rows} of the manifest; keep one, or give each its own")
    long = [s for s in table["scan"] if len(s) > 150 or re.search(r"[\x00-\x1f]", s)]
    if long:
        raise DataError(f"{root}: the scan id {long[0][:40]!r}... cannot name a file; use 150 printable characters or fewer")
    wrong = table.index[~table["split"].isin(("", "train", "test", "validation"))]
    if len(wrong):
        raise DataError(
            f"{root}: split is {table['split'][wrong[0]]!r} in row {_line(wrong[0])} of the manifest; train, test, validation or empty"
        )
    for name, low, high in (("session_days", -np.inf, np.inf), ("age", 0.0, 130.0)):
        if name not in table:
            continue
        numbers = pd.to_numeric(table[name].where(~table[name].isin(MISSING)), errors="coerce")
        given = ~table[name].isin(MISSING)
        bad = table.index[given & ~(numbers.between(low, high) & np.isfinite(numbers))]
        if len(bad):
            raise DataError(f"{root}: {name} is {table[name][bad[0]]!r} in row {_line(bad[0])} of the manifest; a number is needed, or n/a")
    _refuse_changing(table, root)


def _refuse_changing(table: pd.DataFrame, root: Path) -> None:
    """What cannot change within a patient: two people under one id, or a slip of the pen."""
    for name in CONSTANT_COLUMNS:
        given = table[~table[name].isin(MISSING)] if name in table else table[:0]
        other = given.index[given[name] != given.groupby("patient", sort=False)[name].transform("first")] if len(given) else given.index
        if len(other):
            patient = given["patient"][other[0]]
            rows = given[name][given["patient"] == patient]
            raise DataError(
                f"{root}: patient {patient!r} has {name} {rows.iloc[0]!r} in row {_line(rows.index[0])} and {rows[other[0]]!r} "
                f"in row {_line(other[0])} of the manifest; correct one, or give two people two ids"
            )
