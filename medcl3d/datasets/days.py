"""Days between visits, from dates with or without a time of day."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from typing import Any

import pandas as pd

from medcl3d.core.errors import DataError
from medcl3d.datasets.columns import MISSING, PlaceOf

_TIME = r"[T ]\s*\d\d?(?::?\d\d)*(?:[.,]\d+)?\s*(?:Z|[+-]\d\d(?::?\d\d)?)?"
_DATE = re.compile(rf"(\d{{4}})-(\d\d)-(\d\d)(?:{_TIME})?|(\d{{4}})(\d\d)(\d\d)(?:{_TIME})")
_DIGITS = re.compile(r"((?:19|20)\d\d)(\d\d)(\d\d)")  # a DICOM date; as days, it would be 50,000 years


def date_of(time: str) -> date | None:
    """The date of a time as ``2001-02-28T14:00:00``, without time of day and zone; None if it is invalid."""
    match = _DATE.fullmatch(time)
    try:
        return date(*(int(part) for part in match.groups() if part)) if match else None
    except ValueError:
        return None


def days_from_first(dates: Mapping[Any, date | None]) -> dict[Any, str]:
    """Calendar days from the first of the given dates; "" if a date is missing."""
    first = min((one for one in dates.values() if one is not None), default=None)
    return {key: str((one - first).days) if one and first else "" for key, one in dates.items()}


def days_of_dates(table: pd.DataFrame, place_of: PlaceOf) -> tuple[pd.DataFrame, list[str]]:
    """Convert dates in `session_days`, if any, to days from each patient's first date; and a note.

    DataError, with the place, for other cells among dates.
    """
    cells = table["session_days"].tolist() if "session_days" in table else []
    dates = [date_of(_DIGITS.sub(r"\1-\2-\3", cell) if len(cell) == 8 else cell) for cell in cells]
    if not any(dates):
        return table, []
    for row, (one, cell) in enumerate(zip(dates, cells, strict=True)):
        if one is None and cell not in MISSING:
            problem = f"session_days = {cell!r}: not a date as 2001-02-28, unlike other cells"
            raise DataError(place_of(row, "session_days"), problem, "correct it, or write n/a")
    days: dict[int, str] = {}
    for rows in table.groupby("patient", sort=False).indices.values():
        days |= days_from_first({int(row): dates[row] for row in rows})
    note = "column session_days: dates were converted to days from the first date of each patient"
    return table.assign(session_days=[days[row] for row in range(len(table))]), [note]
