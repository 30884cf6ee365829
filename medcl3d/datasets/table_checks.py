"""Checks of a manifest's table: ids, files, sides of the split and values that would be ambiguous."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from medcl3d.core.columns import PATH_COLUMNS
from medcl3d.core.errors import DataError
from medcl3d.core.notes import naming
from medcl3d.datasets.columns import MISSING, PlaceOf
from medcl3d.datasets.scan_ids import fault_of

CONSTANT_COLUMNS = ("sex",)  # per patient
SIDES = ("", "train", "test", "validation")


def refuse_unwritable(table: pd.DataFrame, at: PlaceOf) -> None:
    """DataError for text that cannot be written as UTF-8, or a path with a zero byte."""
    for column in (column for column in PATH_COLUMNS if column in table):
        zero = np.flatnonzero(table[column].str.contains("\0", regex=False)).tolist()
        if zero:
            problem = f"{column} = {table[column][zero[0]]!r}: a zero byte, which file names cannot have"
            raise DataError(at(zero[0], column), problem, "correct it")
    for name in map(str, table.columns):
        try:
            "\n".join(table[name]).encode()
        except UnicodeEncodeError:
            cells = enumerate(table[name])
            row, cell = next((row, cell) for row, cell in cells if cell != _encoded(cell, "replace"))
            place, shown = (_encoded(text, "backslashreplace") for text in (at(row, name), cell))
            problem = f"{name} = {shown!r}: is not UTF-8"
            raise DataError(place, problem, "rename the file, or correct its encoding") from None


def _encoded(text: str, errors: str) -> str:
    return text.encode(errors=errors).decode()


def refuse_empty(table: pd.DataFrame, name: str, at: PlaceOf) -> None:
    """DataError for an empty cell in a column."""
    empty = np.flatnonzero(table[name] == "").tolist()
    if empty:
        remedy = "each scan needs one: fill it in, or delete the row"
        raise DataError(at(empty[0], name), f"{name} is empty", remedy)


def refuse_ambiguous(table: pd.DataFrame, at: PlaceOf) -> None:
    """DataError: duplicate ids and files, ids that cannot name files, text in numeric columns, odd splits."""
    for name, what in (("path", "file"), ("scan", "scan id")):
        values = table[name] if name == "scan" else table[name].map(lambda p: str(Path(p)))
        duplicates = np.flatnonzero(values.duplicated(keep=False)).tolist()
        if duplicates:
            first, *others = (row for row in duplicates if values[row] == values[duplicates[0]])
            also = ", ".join(at(row, name) for row in others[:3])
            also += f" and {len(others) - 3} more" if len(others) > 3 else ""
            problem = f"{name} = {values[first]!r}: also {also} has this {what}"
            raise DataError(at(first, name), problem, f"keep one row, or change one {what}")
    for row, scan in enumerate(table["scan"]):
        if fault := fault_of(scan):
            raise DataError(at(row, "scan"), f"scan = {scan[:40]!r}...: {fault}")
    wrong = np.flatnonzero(~table["split"].isin(SIDES)).tolist()
    if wrong:
        problem = f"split = {table['split'][wrong[0]]!r}: is not one of train, test, validation"
        raise DataError(at(wrong[0], "split"), problem, "write one of them, or leave it empty")
    for name in map(str, table.columns):
        if name == "session_days":
            _refuse_text(table[name], (-np.inf, np.inf), "a number of days", at)
        elif name.lower() == "age":
            _refuse_text(table[name], (0.0, 130.0), "a number of years from 0 to 130", at)
        elif name.lower() in CONSTANT_COLUMNS:
            _refuse_changing(table, name, at)


def _refuse_text(cells: pd.Series, within: tuple[float, float], needed: str, at: PlaceOf) -> None:
    given = ~cells.isin(MISSING)
    numbers = pd.to_numeric(cells.where(given), errors="coerce")
    bad = np.flatnonzero(given & ~(numbers.between(*within) & np.isfinite(numbers))).tolist()
    if bad:
        problem = f"{cells.name} = {cells[bad[0]]!r}: {needed} is needed"
        raise DataError(at(bad[0], str(cells.name)), problem, "correct it, or write n/a")


def _refuse_changing(table: pd.DataFrame, name: str, at: PlaceOf) -> None:
    """DataError for a value that changes within a patient: two people with one id, or a typing error."""
    given = table[~table[name].isin(MISSING)]
    if not len(given):
        return
    other = given.index[given[name] != given.groupby("patient", sort=False)[name].transform("first")]
    if len(other):
        patient = given["patient"][other[0]]
        rows = given[name][given["patient"] == patient]
        first = f"patient {patient!r} has {rows.iloc[0]!r} in {at(int(rows.index[0]), name)}"
        problem = f"{name} = {rows[other[0]]!r}: {first}"
        raise DataError(at(int(other[0]), name), problem, "correct one, or use two patient ids")


def frames_of_several_patients(table: pd.DataFrame) -> list[str]:
    """A note on frames that scans of several patients share, whose places in mm are then compared."""
    patients = table.groupby("frame", sort=False)["patient"].nunique()
    shared = patients.index[patients > 1].tolist()
    if not shared:
        return []
    text = f"{len(shared)} frame{'s have' if len(shared) > 1 else ' has'} scans of several patients, so that "
    text += "their places in mm are compared; correct the column unless they were registered to one space"
    return [naming(text, shared)]
