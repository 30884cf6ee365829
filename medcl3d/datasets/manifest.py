"""The manifest: one row per scan with its file, patient and metadata."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from medcl3d.core.columns import KNOWN_COLUMNS, PATH_COLUMNS
from medcl3d.core.errors import DataError
from medcl3d.datasets.columns import non_numeric_cells, replace_top_codes
from medcl3d.datasets.days import days_of_dates
from medcl3d.datasets.id_spelling import (
    doubtful_ids,
    refuse_equal_looking_ids,
    refuse_truncated_numbers,
    spelling_notes,
)
from medcl3d.datasets.missing_ids import refuse_missing_ids, replace_missing_text
from medcl3d.datasets.scan_ids import default_ids
from medcl3d.datasets.table_checks import (
    frames_of_several_patients,
    refuse_ambiguous,
    refuse_empty,
    refuse_unwritable,
)
from medcl3d.io.encoding import refuse_other_encoding
from medcl3d.io.regular_file import FETCH, is_annexed
from medcl3d.io.walk import skipped_notes

if TYPE_CHECKING:
    from medcl3d.datasets.dicom.series import Series

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
    written      paths of files that the source itself wrote, which may be outside the root
    """

    table: pd.DataFrame
    root: Path
    label_names: dict[int, str] = field(default_factory=dict)
    outside: bool = False
    notes: tuple[str, ...] = ()
    faults: Mapping[str, str] = field(default_factory=dict)
    unwritten: Mapping[str, Series] = field(default_factory=dict)
    written: frozenset[str] = frozenset()

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
        table = table.astype(object).where(table.notna(), "").astype(str)
        table = table.apply(lambda column: column.str.strip())
        if "path" not in table:
            raise DataError(root, "the manifest has no column 'path'", f"it has {list(table.columns)}")
        if not len(table):
            raise DataError(root, "the manifest lists no scan", "write one row per scan")
        places = [f"{root}/{path}" for path in table["path"]] if places is None else list(places)

        def at(row: int, column: str) -> str:
            return cell_places[row].get(column, places[row]) if cell_places else places[row]

        # First: under another encoding no name seems to be UTF-8.
        refuse_other_encoding(zip(places, table["path"], strict=True))
        refuse_unwritable(table, at)
        root = Path(root)
        target = root.resolve()
        for name in PATH_COLUMNS:
            if name in table and not outside:
                table[name] = [_below(root, target, text) for text in table[name].tolist()]
        refuse_empty(table, "path", at)
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
            refuse_empty(table, name, at)
        table, dates = days_of_dates(table, at)
        found += dates
        for name, default in (("session", "1"), ("modality", "unknown"), ("label", ""), ("split", "")):
            table[name] = table.get(name, default)
        frame = table.get("frame", table["scan"])
        table["frame"] = frame.where(frame != "", table["scan"])
        if "atlas" in table:  # world mm -> atlas mm is one for the scans of a frame
            given = table["atlas"].where(table["atlas"] != "")
            table["atlas"] = given.fillna(given.groupby(table["frame"]).transform("first")).fillna("")
        refuse_ambiguous(table, at)
        found += frames_of_several_patients(table)
        found += [*doubtful_ids(table, at), *spelling_notes(table, at)]
        first = [c for c in KNOWN_COLUMNS if c in table]
        table = table[first + [c for c in table if c not in first]]
        found += non_numeric_cells(table, at)
        return Manifest(table, root, dict(label_names or {}), outside, tuple(found))

    def locate(self, text: str) -> Path:
        """The file of a path of the manifest. DataError if it leaves the root without permission.

        Files that are unreachable for other reasons are reported when they are read.
        """
        if self.outside or text in self.written:
            return self.root / text
        path = Path(_below(self.root, self._target, text))
        full = self.root / path
        inside = f"{self.root}: path {text!r} of the manifest"
        if path.is_absolute() or ".." in path.parts:
            raise DataError("", f"{inside} leaves the root", "move the file there, or set allow_outside")
        try:
            if not full.is_symlink() and self._is_inside(full.parent):
                return full
            target = full.resolve()
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) or error.errno == errno.ELOOP:
                raise DataError(f"{inside} is a loop of links") from None
            return full
        if not target.is_relative_to(self._target) and not (is_annexed(full) and _is_absent(full)):
            problem = f"{inside} is a link out of the root, to {target}"
            raise DataError("", problem, "copy the file, or set allow_outside")
        return full

    def with_skipped(
        self,
        files: Iterable[Path],
        unreadable: Iterable[OSError] = (),
        why: Callable[[str], str] = lambda _: "NIfTI files are skipped",
    ) -> Manifest:
        """The same manifest with notes on files below the root that are in none of its rows."""
        cells = self._paths(self.table)
        taken = {os.path.normpath(_below(self.root, self._target, text)) for text in cells}
        skipped = skipped_notes(self.root, files, unreadable, taken=taken, why=why)
        return replace(self, notes=(*self.notes, *skipped))

    @staticmethod
    def _paths(table: pd.DataFrame) -> list[str]:
        """The distinct paths of images, labels and affines."""
        paths = pd.concat([table[name] for name in PATH_COLUMNS if name in table])
        return list(paths[paths != ""].unique())

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
        paths = self._paths(self.table[~self.table["scan"].isin([*self.faults, *self.unwritten])])
        return [path for path in paths if _is_absent(self.locate(path))]

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
