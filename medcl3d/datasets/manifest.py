"""The manifest: one row per scan with its file, patient and metadata."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from medcl3d.core.columns import KNOWN_COLUMNS, PATH_COLUMNS
from medcl3d.core.errors import DataError
from medcl3d.datasets.columns import MISSING, PlaceOf, non_numeric_cells, replace_top_codes
from medcl3d.datasets.days import days_of_dates
from medcl3d.datasets.id_spelling import (
    doubtful_ids,
    refuse_equal_looking_ids,
    refuse_truncated_numbers,
    spelling_notes,
)
from medcl3d.datasets.missing_ids import refuse_missing_ids, replace_missing_text
from medcl3d.datasets.scan_ids import default_ids, fault_of
from medcl3d.io.encoding import refuse_other_encoding
from medcl3d.io.regular_file import FETCH, is_annexed
from medcl3d.io.walk import skipped_notes

if TYPE_CHECKING:
    from medcl3d.datasets.dicom.series import Series

CONSTANT_COLUMNS = ("sex",)  # per patient
SIDES = ("", "train", "test", "validation")

NO_PATIENTS = (
    "no patient ids, so each scan counts as its own patient; two scans of one person may be on both sides "
    "of the split (a column `patient` in a csv manifest prevents this)"
)


@dataclass(frozen=True)
class Manifest:
    """The scans of a collection: one row per scan.

    table        every id as text; `path`, `label` and `atlas` relative to `root` ("" if there is none)
    root         the folder that paths are resolved against
    label_names  class -> name, empty if none were declared
    outside      paths may leave the root
    notes        notes for the user; names of files and people only in the form of `notes.naming`
    faults       scan -> why its source could not convert it to a file
    unwritten    scan -> the DICOM series of its file, if the source was called without an output folder
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
    def of(
        table: pd.DataFrame,
        root: Path,
        label_names: Mapping[int, str] | None = None,
        *,
        outside: bool = False,
        places: Sequence[str] | None = None,
        cell_places: Sequence[Mapping[str, str]] = (),
        notes: Sequence[str] = (),
    ) -> Manifest:
        """Fill in the defaults and refuse an ambiguous table.

        places       the place of each row for messages, as ``scans.csv:7`` (default: the path of its file)
        cell_places  for each row: column -> the place of this cell, if it differs from the row's
        notes        notes to put before those of this function

        Raises DataError naming the place.
        """
        table = table.reset_index(drop=True)
        table = (
            table.astype(object).where(table.notna(), "").astype(str).apply(lambda column: column.str.strip())
        )
        if "path" not in table:
            raise DataError(root, "the manifest has no column 'path'", f"it has {list(table.columns)}")
        if not len(table):
            raise DataError(root, "the manifest lists no scan", "write one row per scan")
        places = [f"{root}/{path}" for path in table["path"]] if places is None else list(places)
        at = _place_of(places, cell_places)
        # First: under another encoding no name seems to be UTF-8.
        refuse_other_encoding(zip(places, table["path"], strict=True))
        _refuse_unwritable(table, at)
        root = Path(root)
        target = root.resolve()
        for name in PATH_COLUMNS:
            if name in table and not outside:
                table[name] = [_below(root, target, text) for text in table[name].tolist()]
        _refuse_empty(table, "path", at)
        refuse_missing_ids(table, at)
        refuse_truncated_numbers(table, at)
        refuse_equal_looking_ids(table, at)
        table, missing_text = replace_missing_text(table, at)
        table, top_codes = replace_top_codes(table, at)
        found = [*notes, *missing_text, *top_codes]
        if "scan" not in table:
            table["scan"] = default_ids(table["path"].tolist())
        if "patient" not in table:
            table["patient"] = table["scan"]
            found.append(NO_PATIENTS)
        for name in ("scan", "patient"):
            _refuse_empty(table, name, at)
        table, dates = days_of_dates(table, at)
        found += dates
        for name, default in (("session", "1"), ("modality", "unknown"), ("label", ""), ("split", "")):
            table[name] = table.get(name, default)
        table["frame"] = (
            table["frame"].where(table["frame"] != "", table["scan"]) if "frame" in table else table["scan"]
        )
        _refuse_ambiguous(table, at)
        found += [*doubtful_ids(table, at), *spelling_notes(table, at)]
        first = [c for c in KNOWN_COLUMNS if c in table]
        table = table[first + [c for c in table if c not in first]]
        return Manifest(
            table, root, dict(label_names or {}), outside, (*found, *non_numeric_cells(table, at))
        )

    def locate(self, text: str) -> Path:
        """The file of a path of the manifest. DataError if it leaves the root without permission.

        Files that are unreachable for other reasons are reported when they are read.
        """
        if self.outside:
            return self.root / text
        path = Path(_below(self.root, self._target, text))
        full = self.root / path
        inside = f"{self.root}: path {text!r} of the manifest"
        if path.is_absolute() or ".." in path.parts:
            raise DataError(
                problem=f"{inside} leaves the root", remedy="move the file there, or set allow_outside"
            )
        try:
            if not full.is_symlink() and self._is_inside(full.parent):
                return full
            target = full.resolve()
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) or error.errno == errno.ELOOP:
                raise DataError(f"{inside} is a loop of links") from None
            return full
        if not target.is_relative_to(self._target) and not (is_annexed(full) and _is_absent(full)):
            raise DataError(
                problem=f"{inside} is a link out of the root, to {target}",
                remedy="copy the file, or set allow_outside",
            )
        return full

    def with_skipped(
        self,
        files: Iterable[Path],
        unreadable: Iterable[OSError] = (),
        why: Callable[[str], str] = lambda _: "NIfTI files are skipped",
    ) -> Manifest:
        """The same manifest with notes on files below the root that are in none of its rows."""
        cells = [
            text for name in PATH_COLUMNS if name in self.table for text in self.table[name].unique() if text
        ]
        taken = {os.path.normpath(_below(self.root, self._target, text)) for text in cells}
        return replace(
            self, notes=(*self.notes, *skipped_notes(self.root, files, unreadable, taken=taken, why=why))
        )

    @cached_property
    def _target(self) -> Path:
        return self.root.resolve()

    @cached_property
    def _inside(self) -> dict[Path, bool]:
        return {}

    def _is_inside(self, folder: Path) -> bool:
        """Whether a folder, with links resolved, is under the root. Cached, since resolving is slow."""
        if folder not in self._inside:
            self._inside[folder] = folder.resolve().is_relative_to(self._target)
        return self._inside[folder]

    def missing(self) -> list[str]:
        """Paths of images, labels and affines that do not exist."""
        table = self.table[~self.table["scan"].isin(list(self.faults))]
        paths = pd.concat([table[name] for name in PATH_COLUMNS if name in table])
        return [p for p in paths[paths != ""].unique() if _is_absent(self.locate(p))]

    def links(self, paths: Sequence[str]) -> list[str]:
        """The given paths that are links."""
        return [path for path in paths if self.locate(path).is_symlink()]

    def describe_missing(self, missing: Sequence[str]) -> str:
        """One line: the number of missing files, the first ten, their folder, and likely causes."""
        hints = [hint for applies, hint in _NOT_EXPANDED if any(applies(path) for path in missing)]
        links, where, named = self.links(missing), self.root.resolve(), ", ".join(missing[:10])
        of_annex = any(is_annexed(self.locate(path)) for path in links)
        remedy = f"{FETCH} in that folder" if of_annex else "fetch the files, or correct the links"
        if links and len(links) == len(missing):
            count = f"{len(links)} files of the manifest"
            return f"{count} are links to missing files, under {where}: {named}; {remedy}"
        hints += [f"{len(links)} of them are links to missing files: {remedy}"] if links else []
        line = f"{len(missing)} files of the manifest are missing under {where}: {named}"
        return f"{line} ({'; '.join(hints)})" if hints else line


def _below(root: Path, target: Path, text: str) -> str:
    """An absolute path, or one with ``..``, relative to the root if it is below it; any other path unchanged.

    target  the root with links resolved. A file that is itself a link keeps its name: `Manifest.locate`
            decides whether it may be followed.
    """
    # Fast path: pathlib would dominate the time of 10,000 paths.
    if not text.startswith(os.sep) and ".." not in text:
        return text
    full = root / text
    if not (Path(text).is_absolute() or ".." in Path(text).parts) or full.name in ("", ".."):
        return text
    try:
        folder = full.parent.resolve()
    except (OSError, RuntimeError):
        return text
    return (folder / full.name).relative_to(target).as_posix() if folder.is_relative_to(target) else text


_NOT_EXPANDED: tuple[tuple[Callable[[str], bool], str], ...] = (
    (lambda path: path.startswith("~"), "~ is not expanded: write the full path"),
    (str.isdigit, "label is the path of a label map: write numbers in the column class"),
    (lambda path: "\\" in path and os.sep == "/", "folders are separated by /, not by \\"),
    (lambda path: "://" in path, "URLs are not read: write the path of a local file"),
    (lambda path: "$" in path, "$ is not expanded: write the full path"),
)


def _is_absent(path: Path) -> bool:
    """Whether a file does not exist. Other causes are reported when it is read."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _place_of(rows: Sequence[str], cells: Sequence[Mapping[str, str]]) -> PlaceOf:
    """Row and column -> the place of the cell, else that of the row."""
    return lambda row, column: cells[row].get(column, rows[row]) if cells else rows[row]


def _refuse_unwritable(table: pd.DataFrame, at: PlaceOf) -> None:
    """Refuse text that cannot be written as UTF-8, before any work is done."""
    for column in (column for column in PATH_COLUMNS if column in table):
        zero = np.flatnonzero(table[column].str.contains("\0", regex=False)).tolist()
        if zero:
            value = table[column][zero[0]]
            raise DataError(
                at(zero[0], column),
                f"{column} = {value!r}: a zero byte, which file names cannot have",
                "correct it",
            )
    for name in map(str, table.columns):
        try:
            "\n".join(table[name]).encode()
        except UnicodeEncodeError:
            row, cell = next(
                (row, cell)
                for row, cell in enumerate(table[name])
                if cell != cell.encode(errors="replace").decode()
            )
            shown, place = (text.encode(errors="backslashreplace").decode() for text in (cell, at(row, name)))
            raise DataError(
                place, f"{name} = {shown!r}: is not UTF-8", "rename the file, or correct its encoding"
            ) from None


def _refuse_empty(table: pd.DataFrame, name: str, at: PlaceOf) -> None:
    empty = np.flatnonzero(table[name] == "").tolist()
    if empty:
        raise DataError(
            at(empty[0], name), f"{name} is empty", "each scan needs one: fill it in, or delete the row"
        )


def _refuse_ambiguous(table: pd.DataFrame, at: PlaceOf) -> None:
    """Refuse duplicate ids and files, ids that cannot name files, text in numeric columns, unknown splits."""
    for name, what in (("path", "file"), ("scan", "scan id")):
        values = table[name] if name == "scan" else table[name].map(lambda p: str(Path(p)))
        duplicates = np.flatnonzero(values.duplicated(keep=False)).tolist()
        if duplicates:
            first, *others = (row for row in duplicates if values[row] == values[duplicates[0]])
            also = ", ".join(at(row, name) for row in others[:3]) + (
                f" and {len(others) - 3} more" if len(others) > 3 else ""
            )
            remedy = f"keep one row, or change one {what}"
            raise DataError(
                at(first, name), f"{name} = {values[first]!r}: also {also} has this {what}", remedy
            )
    for row, scan in enumerate(table["scan"]):
        if fault := fault_of(scan):
            raise DataError(at(row, "scan"), f"scan = {scan[:40]!r}...: {fault}")
    wrong = np.flatnonzero(~table["split"].isin(SIDES)).tolist()
    if wrong:
        place, value = at(wrong[0], "split"), table["split"][wrong[0]]
        raise DataError(
            place,
            f"split = {value!r}: is not one of train, test, validation",
            "write one of them, or leave it empty",
        )
    for name in map(str, table.columns):
        if name == "session_days":
            _refuse_text(table[name], (-np.inf, np.inf), "a number of days", at)
        elif name.lower() == "age":
            _refuse_text(table[name], (0.0, 130.0), "a number of years from 0 to 130", at)
    _refuse_changing(table, at)


def _refuse_text(cells: pd.Series, within: tuple[float, float], needed: str, at: PlaceOf) -> None:
    given = ~cells.isin(MISSING)
    numbers = pd.to_numeric(cells.where(given), errors="coerce")
    bad = np.flatnonzero(given & ~(numbers.between(*within) & np.isfinite(numbers))).tolist()
    if bad:
        raise DataError(
            at(bad[0], str(cells.name)),
            f"{cells.name} = {cells[bad[0]]!r}: {needed} is needed",
            "correct it, or write n/a",
        )


def _refuse_changing(table: pd.DataFrame, at: PlaceOf) -> None:
    """Refuse values that cannot change within a patient: two people with one id, or a typing error."""
    for name in map(str, table.columns):
        if name.lower() not in CONSTANT_COLUMNS:
            continue
        given = table[~table[name].isin(MISSING)]
        other = (
            given.index[given[name] != given.groupby("patient", sort=False)[name].transform("first")]
            if len(given)
            else given.index
        )
        if len(other):
            patient = given["patient"][other[0]]
            rows = given[name][given["patient"] == patient]
            raise DataError(
                at(int(other[0]), name),
                f"{name} = {rows[other[0]]!r}: patient {patient!r} has {rows.iloc[0]!r} in "
                f"{at(int(rows.index[0]), name)}",
                "correct one, or use two patient ids",
            )
