"""BIDS metadata of scans: participants.tsv, sessions.tsv, scans.tsv, and JSON sidecars with inheritance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from medcl3d.core.errors import DataError
from medcl3d.core.notes import naming
from medcl3d.datasets.bids.names import BidsName
from medcl3d.datasets.columns import MISSING
from medcl3d.datasets.days import date_of, days_from_first
from medcl3d.io.json_file import read_json
from medcl3d.io.table_file import read_rows

DAYS = ("days_since_first", "session_days", "days")
# Columns filled from file names.
OF_NAMES = ("scan", "patient", "session", "modality", "path", "label", "atlas")

Row = dict[str, str]
Sidecar = tuple[BidsName, Path]


class Line(NamedTuple):
    """A row of a table and its place, as ``participants.tsv:5``."""

    row: Row
    place: str


def participants(root: Path, subjects: set[str]) -> tuple[dict[str, Line], list[str]]:
    """Subject -> its columns, and notes on rows without a folder and folders without a row. DataError."""
    path = root / "participants.tsv"
    if not path.is_symlink() and not path.exists():
        return {}, ["participants.tsv is missing, so scans have no age, sex or group"]
    rows: dict[str, Line] = {}
    for line, row in _rows(path, "participant_id").items():
        given = row.pop("participant_id")
        subject = given if given.startswith("sub-") else f"sub-{given}"
        if subject in rows:
            raise DataError(f"{path}:{line}", f"{subject} has two rows", "keep one")
        rows[subject] = Line(row, f"{path}:{line}")
    notes = []
    for found, what in (
        (subjects - set(rows), "have no row in participants.tsv"),
        (set(rows) - subjects, "of participants.tsv have no folder"),
    ):
        if found:
            notes.append(naming(f"{len(found)} subjects {what}", sorted(found)))
    return rows, notes


def sessions(path: Path) -> dict[str, Line]:
    """Session -> its columns, with days from the first visit if the table has days or dates. DataError."""
    rows = _rows(path, "session_id")
    days = next((column for column in DAYS if any(column in row for row in rows.values())), None)
    if days is not None:
        for row in rows.values():
            row["session_days"] = row.pop(days)
    else:
        times = {line: row["acq_time"] for line, row in rows.items() if "acq_time" in row}
        dates = {line: _date(time, f"{path}:{line}") for line, time in times.items()}
        for line, day in days_from_first(dates).items():
            rows[line]["session_days"] = day
    found = {}
    for line, row in rows.items():
        row.pop("acq_time", None)
        found[row.pop("session_id").removeprefix("ses-")] = Line(row, f"{path}:{line}")
    return found


def scans(path: Path) -> dict[str, Line]:
    """File, relative to the folder of the table -> its columns, with acq_time. DataError."""
    return {
        row.pop("filename").removeprefix("./"): Line(row, f"{path}:{line}")
        for line, row in _rows(path, "filename").items()
    }


def _date(time: str, place: str) -> date | None:
    if time in MISSING:
        return None
    found = date_of(time)
    if found is None:
        problem = f"acq_time = {time!r}: is not a date, as 2001-02-28T14:00:00"
        raise DataError(place, problem, "correct it, or write n/a")
    return found


def _rows(path: Path, key: str) -> dict[int, Row]:
    """Line -> cells by column, without those filled from file names. DataError without the key's column."""
    names, rows = read_rows(path)  # plain rows: one data frame per subject would dominate the run time
    if key not in names:
        raise DataError(f"{path}:1", f"the column {key} is missing, found: {names}")
    kept = [(at, name) for at, name in enumerate(names) if name not in OF_NAMES or name == key]
    return {line: {name: row[at] for at, name in kept} for line, row in rows.items()}


@dataclass
class Sidecars:
    """JSON sidecars of images: for each key, the nearest file to an image takes precedence.

    keys  what is read from them
    """

    keys: Sequence[str]
    _read: dict[Path, Row] = field(default_factory=dict)
    _damaged: list[str] = field(default_factory=list)

    def of(self, name: BidsName, levels: Iterable[Sequence[Sidecar]]) -> Row:
        """The values for one image, as text, from all sidecars that apply to it; the furthest level first."""
        found: Row = {}
        for level in levels:
            for of, path in sorted(level, key=lambda one: len(one[0].entities)):
                if of.suffix == name.suffix and of.entities.items() <= name.entities.items():
                    found |= self._values(path)
        return found

    def _values(self, path: Path) -> Row:
        if path not in self._read:
            try:
                content = read_json(path, "a sidecar is a JSON object", numbers_as_text=True)
            except DataError:
                content = None
            if not isinstance(content, dict):
                self._damaged.append(str(path))
                content = {}
            self._read[path] = {key: _text(content[key]) for key in self.keys if key in content}
        return self._read[path]

    def notes(self) -> list[str]:
        """Notes on unreadable sidecars."""
        text = f"{len(self._damaged)} sidecars cannot be read as JSON and are ignored"
        return [naming(text, self._damaged)] if self._damaged else []


def _text(value: Any) -> str:
    """A value as one cell; lists, as of ScanningSequence, are joined."""
    if isinstance(value, list):
        return "+".join(map(_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None or isinstance(value, dict) else str(value)
