"""Different spellings of one id, and ids that a spreadsheet has changed."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal

import numpy as np
import pandas as pd

from medcl3d.core.columns import KNOWN_COLUMNS
from medcl3d.core.errors import DataError
from medcl3d.core.notes import naming
from medcl3d.datasets.columns import MISSING, PlaceOf, changed, distinct, matching
from medcl3d.datasets.missing_ids import NOT_KNOWN, bare, visible
from medcl3d.datasets.name_words import names_label_maps

MOST_NAMES = 50  # distinct names of a column that are compared; more are free text

# 1.23457E+11, 1e+05, 1.2346E11: digits are lost. 1e3 may be an id.
_CUT_NUMBER = r"[+-]?\d+([.,]\d+)?e\+\d+|[+-]?\d+[.,]\d+e-?\d+"
_MONTH = "(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)"
_DATE = rf"\d{{1,2}}-{_MONTH}(-\d{{2,4}})?|{_MONTH}-\d{{2}}"
_WHOLE_DATE = (
    r"(19|20)\d\d-\d\d-\d\d( 00:00(:00)?)?|\d{1,2}/\d{1,2}/(\d\d)?\d\d|\d{1,2}\.\d{1,2}\.(19|20)\d\d"
)
_PLACEHOLDER = r"(sub-)?(anon[a-z]*|dummy|test|x{2,}|-\d+)"
_ROUNDED = "have only zeros after the 15th digit, as spreadsheets round"
_CLASS_PLACEHOLDER = r"-\d+|unclear|uncertain|indeterminate"


def plain_spelling(text: str) -> str:
    """Normal form of an id or name.

    Normalises case, Unicode form, blanks, dashes, leading zeros, and ``1.0`` to ``1``; removes quotes
    (``="007"``) and the ``sub-`` of BIDS. Works line by line.
    """
    if not text.isascii():
        text = visible(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()))
        text = re.sub("[\u2010-\u2015\u2212]", "-", text)
    text = re.sub(r"[^\S\n]+|[\"'`=]", "", text.casefold()).replace("_", "-")
    text = re.sub(r"^sub-", "", text, flags=re.MULTILINE)
    text = re.sub(r"^([0-9]+)[.,]0*$", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"^[0-9]+(\.[0-9]*)?e\+?[0-9]{1,2}$", _written_out, text, flags=re.MULTILINE)
    return re.sub(r"(?<![0-9])0+(?=[0-9])", "", text)


def _written_out(number: re.Match[str]) -> str:
    """An integer without an exponent."""
    value = Decimal(number[0])
    return str(int(value)) if value == value.to_integral_value() else number[0]


def alike(texts: Iterable[str]) -> list[list[str]]:
    """Groups of two or more distinct texts that differ only in spelling."""
    texts = list(texts)
    return _groups(texts, changed(texts, plain_spelling))


def is_truncated_number(text: str) -> bool:
    """Whether only the first digits of a number are left, as in ``1.23457E+11``."""
    return bool(matching([text], _CUT_NUMBER))


def refuse_truncated_numbers(table: pd.DataFrame, place_of: PlaceOf) -> None:
    """DataError, with the place, for ids of which a spreadsheet kept only the first digits."""
    for name in ("patient", "scan", "session", "frame"):
        cut = matching(distinct(table[name]), _CUT_NUMBER) if name in table else []
        if cut:
            rows = np.flatnonzero(table[name].isin(cut)).tolist()
            many = f", as in {len(rows)} rows" if len(rows) > 1 else ""
            truncated = f"a spreadsheet or a conversion to a number has truncated this id{many}"
            problem = f"{name} = {cut[0]!r}: {truncated}, so different ids became equal"
            remedy = "export the table again with the column as text"
            raise DataError(place_of(rows[0], name), problem, remedy)


def refuse_equal_looking_ids(table: pd.DataFrame, place_of: PlaceOf) -> None:
    """DataError, with both places, for ids that look equal: Unicode forms, invisible characters, blanks."""
    for name in ("patient", "scan"):
        values = distinct(table[name]) if name in table else []
        for one, other, *_ in _groups(values, changed(values, _looks)):
            first, second = (place_of(_first(table[name], text), name) for text in (one, other))
            problem = f"{name} = {other!a}: looks like {one!a} in {first} but has other characters"
            raise DataError(second, problem, "use the same characters in both")


def _looks(text: str) -> str:
    """An id as it is displayed; works line by line."""
    text = text if text.isascii() else visible(unicodedata.normalize("NFC", text))
    return re.sub(r"[^\S\n]+", " ", text)


def doubtful_ids(table: pd.DataFrame, place_of: PlaceOf) -> list[str]:
    """Notes, with places, on several spellings of one id, changes by a spreadsheet, and placeholders."""
    notes = _spelling_notes(table, place_of) + _visits(table, place_of)
    for name in ("patient", "scan"):
        cells, values = table[name], distinct(table[name])
        long = matching(values, r"\d{16,}")
        rounded = long if len(long) > 2 and all(int(text[15:]) == 0 for text in long) else []
        dates = matching(values, f"{_DATE}|{_WHOLE_DATE}" if name == "patient" else _DATE)
        shared = [cell for cell in matching(values, _PLACEHOLDER) if (cells == cell).sum() > 1]
        labels = [cell for cell in values if names_label_maps(cell)] if name == "patient" else []
        for found, what in (
            (labels, "mean label maps, not patients; name these files in the column label"),
            (dates, "look like dates; a spreadsheet converts ids such as 1-2 or MAR1"),
            (rounded, f"{_ROUNDED}; different ids may now be equal"),
            (shared, "look like placeholders and have several scans"),
        ):
            if found:
                named = [_with_places(cells, [cell], place_of) for cell in found]
                notes.append(naming(f"{len(found)} {name} ids {what}", named))
    return notes


def _spelling_notes(table: pd.DataFrame, place_of: PlaceOf) -> list[str]:
    patients, scans = alike(distinct(table["patient"])), alike(distinct(table["scan"]))
    if patients and scans:  # scans named after such patients are reported with the patients
        owner = dict(zip(table["scan"], table["patient"], strict=True))
        group_of = {patient: number for number, same in enumerate(patients) for patient in same}

        def is_of_patients(same: Sequence[str]) -> bool:
            owners = {owner[scan] for scan in same}
            return len(owners) > 1 and len({group_of.get(patient, patient) for patient in owners}) == 1

        scans = [same for same in scans if not is_of_patients(same)]
    notes = []
    for name, what, found in (("patient", "person", patients), ("scan", "scan", scans)):
        if found:
            count = f"{len(found)} groups of {name} ids"
            text = f"{count} differ only in spelling and may be one {what}; use one spelling per id"
            notes.append(naming(text, [_with_places(table[name], same, place_of) for same in found]))
    return notes


def _visits(table: pd.DataFrame, place_of: PlaceOf) -> list[str]:
    """A note on sessions of one patient whose ids differ only in spelling."""
    variants = alike(distinct(table["session"]))
    if not variants:
        return []
    key = {session: number for number, same in enumerate(variants) for session in same}
    rows = table.loc[table["session"].isin(list(key)), ["patient", "session"]].drop_duplicates()
    groups = rows.groupby(["patient", rows["session"].map(key)], sort=False)
    named = [
        " and ".join(f"{table['session'][row]} in {place_of(row, 'session')}" for row in group.index[:3])
        for _, group in groups
        if len(group) > 1
    ]
    count = f"{len(named)} groups of session ids of a patient"
    text = f"{count} differ only in spelling and may be one session; use one spelling per id"
    return [naming(text, named)] if named else []


def spelling_notes(table: pd.DataFrame, place_of: PlaceOf) -> list[str]:
    """Notes, with counts and places, on several spellings of names, and on classes that mean unknown."""
    notes = []
    for name in map(str, table.columns):
        values = [] if name in KNOWN_COLUMNS and name not in ("class", "modality") else distinct(table[name])
        values = [cell for cell in values if cell not in MISSING] if len(values) <= MOST_NAMES else []
        if name not in KNOWN_COLUMNS and pd.to_numeric(pd.Series(values), errors="coerce").notna().all():
            continue
        classes = values if name == "class" else []
        unknown = [one for one in classes if bare(one) in NOT_KNOWN] + matching(classes, _CLASS_PLACEHOLDER)
        for found, what in (
            (alike(values), "names have several spellings and count as different; use one spelling per name"),
            ([[x] for x in unknown], "classes may mean that the class is unknown; if so, empty the cells"),
        ):
            if found:
                named = [_counted(table[name], group, place_of) for group in found]
                notes.append(naming(f"column {name}: {len(found)} {what}", named))
    return notes


def _groups(texts: Sequence[str], keys: Sequence[str]) -> list[list[str]]:
    """Groups of two or more texts with one key."""
    counts = Counter(keys)
    if len(counts) == len(texts):
        return []
    found: dict[str, list[str]] = {}
    for text, key in zip(texts, keys, strict=True):
        if counts[key] > 1:
            found.setdefault(key, []).append(text)
    return list(found.values())


def _first(cells: pd.Series, cell: str) -> int:
    return int(np.flatnonzero(cells == cell)[0])


def _with_places(cells: pd.Series, same: Sequence[str], place_of: PlaceOf) -> str:
    return " and ".join(f"{cell} in {place_of(_first(cells, cell), str(cells.name))}" for cell in same[:3])


def _counted(cells: pd.Series, same: Sequence[str], place_of: PlaceOf) -> str:
    name = str(cells.name)
    return " and ".join(
        f"{cell!r} of {(cells == cell).sum()} scans, first in {place_of(_first(cells, cell), name)}"
        for cell in same[:3]
    )
