"""Days between visits, out of dates with or without a time of day."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from typing import Any

import pandas as pd

from medcl3d.data.columns import MISSING

_TIME = r"[T ]\s*\d\d?(?::?\d\d)*(?:[.,]\d+)?\s*(?:Z|[+-]\d\d(?::?\d\d)?)?"
_DATE = re.compile(rf"(\d{{4}})-(\d\d)-(\d\d)(?:{_TIME})?|(\d{{4}})(\d\d)(\d\d)(?:{_TIME})")


def date_of(time: str) -> date | None:
    """The date of a time as ``2001-02-28T14:00:00``, None if it is none. The time of day and its zone do not count."""
    match = _DATE.fullmatch(time)
    try:
        return date(*(int(part) for part in match.groups() if part)) if match else None
    except ValueError:
        return None


def days_from_first(dates: Mapping[Any, date | None]) -> dict[Any, str]:
    """Days from the first of some dates, as a calendar counts them; "" where a date is missing."""
    first = min((one for one in dates.values() if one is not None), default=None)
    return {key: "" if one is None or first is None else str((one - first).days) for key, one in dates.items()}


def days_of_dates(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The table with days from each patient's first date in `session_days`, if that column holds dates; and a note on it."""
    cells = table["session_days"].tolist() if "session_days" in table else []
    dates = [None if cell.isdigit() else date_of(cell) for cell in cells]
    if not any(dates) or any(one is None and cell not in MISSING for one, cell in zip(dates, cells, strict=True)):
        return table, []
    days: dict[int, str] = {}
    for rows in table.groupby("patient", sort=False).indices.values():
        days |= days_from_first({int(row): dates[row] for row in rows})
    note = "column session_days: its dates were turned into days from the first date of each patient"
    return table.assign(session_days=[days[row] for row in range(len(table))]), [note]
