"""Columns of a table: names that resemble known ones, distinct cells, cells that are not numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

import numpy as np
import pandas as pd

from medcl3d.core.columns import KNOWN_COLUMNS
from medcl3d.core.errors import DataError
from medcl3d.core.notes import naming
from medcl3d.io.walk import VOLUMES

PlaceOf = Callable[[int, str], str]  # row, column -> the place of the cell, as scans.csv:7
MISSING = ("", "n/a")  # BIDS writes n/a; NA may be the name of a site
# Written by other programs in numeric columns.
ALSO_MISSING = ("na", "nan", "null", "none", "missing", "unknown", "?", "-", ".")
# Common names of these columns, in the form of `_plain`.
SYNONYMS = {
    "path": "file filename filepath fname image imagefile imagefilename imagepath img imgpath nifti "
    "niftifile niftipath scanpath",
    "patient": "mrn participant participantid patientid patientname patientno patientnumber person personid "
    "pid ptid sub subid subj subject subjectid subjectno subjid",
    "scan": "imageid scanid seriesid",
    "session": "ses sesid sessionid timepoint tp visit visitid",
    "session_days": "days dayssincebaseline dayssincefirst",
    "modality": "contrast imagetype sequence",
    "split": "partition set subset",
}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", name.lower())


def normalise_columns(table: pd.DataFrame, where: str) -> tuple[pd.DataFrame, list[str]]:
    """Rename columns spelled like known ones, as ``Patient`` -> ``patient``; and notes on similar names.

    where  the place of the column names, for messages

    Raises DataError if two columns mean the same, if `path` is missing, or if `patient` is missing and
    another column may be it: each scan would be its own patient, and one person could be on both sides of the
    split.
    """
    known = {_plain(name): name for name in KNOWN_COLUMNS}
    meant = {column: known.get(_plain(column), column) for column in table.columns}
    for name in KNOWN_COLUMNS:
        same = [column for column in table.columns if meant[column] == name]
        if len(same) > 1:
            problem = f"columns {' and '.join(map(repr, same))} both mean {name}"
            raise DataError(where, problem, "keep one, or rename the other")
    renamed = {column: name for column, name in meant.items() if column != name}
    table = table.rename(columns=renamed)
    notes = [f"columns {', '.join(renamed)} are read as {', '.join(renamed.values())}"] if renamed else []
    near = similar_columns(list(table.columns))
    if "path" not in table:
        hint = f"rename {near['path']!r} to path" if "path" in near else "name the column of image files path"
        remedy = f"{hint} (found: {', '.join(table.columns) or 'none'})"
        raise DataError(where, "the column path is missing", remedy)
    if "patient" in near:
        raise DataError(where, f"column {near['patient']!r}: {patient_column_remedy(near['patient'])}")
    notes += [
        f"column {column!r} counts as metadata; rename it to {name} if it means that"
        for name, column in near.items()
    ]
    for column in table.columns if "label" not in table and "label" not in near else ():
        if column not in KNOWN_COLUMNS and table[column].str.endswith(VOLUMES).any():
            remedy = "rename it to label if these are segmentations"
            notes.append(f"column {column!r} contains file paths and counts as metadata; {remedy}")
    return table, notes


def patient_column_remedy(name: str) -> str:
    """Error text for a column that may be the missing column patient."""
    return (
        "may be the patient id; without patient, scans of one person could be on both sides of the split; "
        f"rename {name} to patient, or to something else if it is not the patient id"
    )


def similar_columns(names: Sequence[str]) -> dict[str, str]:
    """Missing known column -> the first name that is a synonym or a likely misspelling of it."""
    free = {name: _plain(name) for name in names if name not in KNOWN_COLUMNS}
    near = {}
    for known in (known for known in KNOWN_COLUMNS if known not in names):
        others = SYNONYMS.get(known, "").split()
        found = [name for name, plain in free.items() if plain in others]
        found = found or [name for name, plain in free.items() if _is_slip(plain, known)]
        if found:
            near[known] = found[0]
    return near


def _is_slip(name: str, known: str) -> bool:
    """Whether a name is nearly the known one: patients and pateint are, inpatient and patientkg are not."""
    known = _plain(known)
    if name[:1] != known[:1] or (name.startswith(known) and name not in (known, f"{known}s")):
        return False
    return SequenceMatcher(None, name, known).ratio() > 0.85


# Notations of ages above a limit: 89+ in BIDS and HIPAA, elsewhere >89 or 90 and over.
_TOP_CODE = re.compile(
    r"(?:>=?|\u2265)\s*(\d+(?:\.\d+)?)|(\d+(?:\.\d+)?)\s*(?:\+|(?:and|or) (?:over|above|older))",
    re.IGNORECASE,
)
_AGE = re.compile(r"(?:^|[^a-z])age(?:[^a-z]|$)")


def replace_top_codes(table: pd.DataFrame, place_of: PlaceOf) -> tuple[pd.DataFrame, list[str]]:
    """Replace ages above a limit, as ``89+``, by the limit, 89; and a note on each such column."""
    table, notes = table.copy(), []
    for name in map(str, table.columns):
        if not _AGE.search(re.sub("([a-z])([A-Z])", r"\1 \2", name).lower()):
            continue
        matches = enumerate(map(_TOP_CODE.fullmatch, table[name].tolist()))
        found = [(row, match) for row, match in matches if match]
        if found:
            named = [f"{match[0]!r} in {place_of(row, name)}" for row, match in found]
            text = f"column {name}: {len(found)} ages above a limit were replaced by the limit"
            notes.append(naming(text, named))
            table[name] = table[name].replace({match[0]: match[1] or match[2] for _, match in found})
    return table, notes


def non_numeric_cells(table: pd.DataFrame, place_of: PlaceOf) -> list[str]:
    """Notes on metadata columns with a few non-numeric cells among numbers, which are read as categories."""
    names = [str(name) for name in table if name not in KNOWN_COLUMNS]
    notes = [_non_numeric(name, table[name], place_of) for name in names]
    return [note for note in notes if note]


_WITH_COMMA = r"[+-]?(?:\d+,\d+|\d{1,3}(?:\.\d{3})+,\d+)"  # 70,5 and 1.070,5


def _non_numeric(name: str, cells: pd.Series, place_of: PlaceOf) -> str:
    """A note on a column, "" if it has only numbers or only categories."""
    given = ~cells.isin(MISSING).to_numpy()
    is_number = pd.to_numeric(cells, errors="coerce").notna().to_numpy()
    odd = given & ~is_number
    if not odd.any():
        return ""
    with_commas = cells.str.fullmatch(_WITH_COMMA).to_numpy()
    what, remedy, rows = "are not numbers", "correct them, or write n/a", np.flatnonzero(odd)
    if with_commas.any() and (is_number | with_commas)[given].all():
        what, remedy, rows = "have a decimal comma", "write a point", np.flatnonzero(with_commas)
    else:
        wrong = odd & ~cells.str.lower().isin(ALSO_MISSING).to_numpy()
        if is_number.sum() < 2 or wrong.sum() > max(1, (is_number | wrong).sum() // 10):
            return ""  # categories, some of which are digits
    count = f"{len(rows)} of its {len(cells)} cells"
    text = f"column {name}: {count} {what}, so the column is read as categories; {remedy}"
    return naming(text, [f"{cells.iloc[row]!r} in {place_of(int(row), name)}" for row in rows])


def distinct(cells: pd.Series) -> list[str]:
    """The distinct cells, in order of first appearance."""
    return list(dict.fromkeys(cells.to_numpy(dtype=object).tolist()))


def changed(texts: Sequence[str], change: Callable[[str], str]) -> list[str]:
    """Texts changed by a function that works line by line, called once on all of them."""
    lines = change("\n".join(texts)).split("\n")
    return lines if len(lines) == len(texts) else [change(text.replace("\n", " ")) for text in texts]


def matching(texts: Sequence[str], pattern: str) -> list[str]:
    """The texts that a pattern matches as a whole, ignoring case."""
    whole = re.compile(f"^(?:{pattern})$", re.IGNORECASE | re.MULTILINE)
    return [text for text in texts if whole.fullmatch(text)] if whole.search("\n".join(texts)) else []
