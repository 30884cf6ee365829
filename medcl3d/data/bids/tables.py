"""What BIDS says of scans beside their names: participants.tsv, sessions.tsv, scans.tsv, and JSON sidecars that pass on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from medcl3d.data.bids.names import BidsName
from medcl3d.data.columns import MISSING
from medcl3d.data.days import date_of, days_from_first
from medcl3d.data.json_file import read_json
from medcl3d.data.notes import naming
from medcl3d.data.table_file import read_rows
from medcl3d.errors import DataError

DAYS = ("days_since_first", "session_days", "days")
OF_NAMES = ("scan", "patient", "session", "modality", "path", "label", "atlas")  # columns that names of files fill

Row = dict[str, str]
Sidecar = tuple[BidsName, Path]


class Line(NamedTuple):
    """A row of a table, and where it stands, as ``participants.tsv:5``."""

    row: Row
    place: str


def participants(root: Path, subjects: set[str]) -> tuple[dict[str, Line], list[str]]:
    """Subject -> its columns, and notes on what has no partner. DataError."""
    path = root / "participants.tsv"
    if not path.is_symlink() and not path.exists():
        return {}, ["there is no participants.tsv, so scans carry no age, sex or group"]
    rows: dict[str, Line] = {}
    for line, row in _rows(path, "participant_id").items():
        given = row.pop("participant_id")
        subject = given if given.startswith("sub-") else f"sub-{given}"
        if subject in rows:
            raise DataError(f"{path}:{line}: {subject} stands there twice; keep one row")
        rows[subject] = Line(row, f"{path}:{line}")
    notes = []
    for who, what in (
        (subjects - set(rows), "have no row in participants.tsv"),
        (set(rows) - subjects, "of participants.tsv have no folder"),
    ):
        if who:
            notes.append(naming(f"{len(who)} subjects {what}", sorted(who)))
    return rows, notes


def sessions(path: Path) -> dict[str, Line]:
    """Session -> its columns, days from the first visit among them where the table has days or dates. DataError."""
    rows = _rows(path, "session_id")
    days = next((column for column in DAYS if any(column in row for row in rows.values())), None)
    if days is not None:
        for row in rows.values():
            row["session_days"] = row.pop(days)
    else:
        dates = {line: _date(row["acq_time"], f"{path}:{line}") for line, row in rows.items() if "acq_time" in row}
        for line, day in days_from_first(dates).items():
            rows[line]["session_days"] = day
    return {
        row.pop("session_id").removeprefix("ses-"): Line({n: v for n, v in row.items() if n != "acq_time"}, f"{path}:{line}")
        for line, row in rows.items()
    }


def scans(path: Path) -> dict[str, Line]:
    """File, as the table has it relative to its folder -> its columns, acq_time among them. DataError."""
    return {row.pop("filename").removeprefix("./"): Line(row, f"{path}:{line}") for line, row in _rows(path, "filename").items()}


def _date(time: str, place: str) -> date | None:
    if time in MISSING:
        return None
    found = date_of(time)
    if found is None:
        raise DataError(f"{place}: acq_time = {time!r}: is no date as 2001-02-28T14:00:00; correct it, or write n/a")
    return found


def _rows(path: Path, key: str) -> dict[int, Row]:
    """Line -> cells by column, without those that names of files fill. DataError where the key's column is missing."""
    names, rows = read_rows(path)  # plain rows: a data frame a subject takes longer than all else
    if key not in names:
        raise DataError(f"{path}:1: the column {key} is missing; there are {names}")
    return {
        line: {name: cell for name, cell in zip(names, row, strict=True) if name not in OF_NAMES or name == key}
        for line, row in rows.items()
    }


@dataclass
class Sidecars:
    """JSON beside images: what stands nearer to an image goes before what stands further up, key by key.

    keys    what is taken from them
    notes   what was wrong with some
    """

    keys: Sequence[str]
    _read: dict[Path, Row] = field(default_factory=dict)
    _damaged: list[str] = field(default_factory=list)

    def of(self, name: BidsName, levels: Iterable[Sequence[Sidecar]]) -> Row:
        """The values for one image, as text, out of the sidecars in its folder and in those above, the furthest first."""
        found: Row = {}
        for level in levels:
            near = [(of, path) for of, path in level if of.suffix == name.suffix and of.entities.items() <= name.entities.items()]
            for _, path in sorted(near, key=lambda one: len(one[0].entities)):
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
        """What was wrong with those that were read."""
        return [naming(f"{len(self._damaged)} sidecars cannot be read as JSON and say nothing", self._damaged)] if self._damaged else []


def _text(value: Any) -> str:
    """A value as one cell; lists, as of ScanningSequence, joined."""
    if isinstance(value, list):
        return "+".join(map(_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None or isinstance(value, dict) else str(value)
