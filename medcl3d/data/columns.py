"""What the columns of a user's table mean: names that are nearly known ones, and numbers among which a few are none."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

import numpy as np
import pandas as pd

from medcl3d.data.notes import naming
from medcl3d.data.walk import VOLUMES
from medcl3d.errors import DataError

# Columns with a meaning of their own; every other column of a manifest is metadata.
ID_COLUMNS = ("scan", "patient", "session", "modality", "frame", "class")
KNOWN_COLUMNS = (*ID_COLUMNS, "session_days", "path", "label", "atlas", "split")
PATH_COLUMNS = ("path", "label", "atlas")

PlaceOf = Callable[[int, str], str]  # row, column -> where a user finds the cell, as scans.csv:7

MISSING = ("", "n/a")  # BIDS writes n/a; NA may be the name of a site
ALSO_MISSING = ("na", "nan", "null", "none", "missing", "unknown", "?", "-", ".")  # by others, where all else is numbers

# What others call these columns, as `_plain` has it.
OTHERWISE = {
    "path": "file filename filepath fname image imagefile imagefilename imagepath img imgpath nifti niftifile niftipath scanpath",
    "patient": "mrn participant participantid patientid patientname patientno patientnumber person personid pid ptid "
    "sub subid subj subject subjectid subjectno subjid",
    "scan": "imageid scanid seriesid",
    "session": "ses sesid sessionid timepoint tp visit visitid",
    "session_days": "days dayssincebaseline dayssincefirst",
    "modality": "contrast imagetype sequence",
    "split": "partition set subset",
}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", name.lower())


def meant_columns(table: pd.DataFrame, where: str) -> tuple[pd.DataFrame, list[str]]:
    """A table whose known columns have the names that are known, as ``Patient`` -> ``patient``; and notes on names that are near one.

    where  the line of the table with the names, for messages

    Raises DataError where two columns mean the same, where none is `path`, and where none is `patient` but one seems to be: each
    scan would be a patient of its own, and one person could stand on both sides of the split.
    """
    known = {_plain(name): name for name in KNOWN_COLUMNS}
    meant = {column: known.get(_plain(column), column) for column in table.columns}
    for name in KNOWN_COLUMNS:
        same = [column for column in table.columns if meant[column] == name]
        if len(same) > 1:
            raise DataError(f"{where}: columns {' and '.join(map(repr, same))} both mean {name}; keep one, or rename the other")
    renamed = {column: name for column, name in meant.items() if column != name}
    table = table.rename(columns=renamed)
    notes = [f"columns {', '.join(renamed)} are read as {', '.join(renamed.values())}"] if renamed else []
    near = near_columns(list(table.columns))
    if "path" not in table:
        hint = f"rename {near['path']!r} to path" if "path" in near else "name the column with the images' files path"
        raise DataError(f"{where}: the column path is missing; {hint} (there are {', '.join(table.columns) or 'none'})")
    if "patient" in near:
        raise DataError(f"{where}: column {near['patient']!r}: {ask_for_patient(near['patient'])}")
    notes += [f"column {column!r} counts as metadata; rename it to {name} if it is that" for name, column in near.items()]
    for column in table.columns if "label" not in table and "label" not in near else ():
        if column not in KNOWN_COLUMNS and table[column].str.endswith(VOLUMES).any():
            notes.append(f"column {column!r} holds files and counts as metadata; rename it to label if those are the segmentations")
    return table, notes


def ask_for_patient(name: str) -> str:
    """What to say where nothing is called patient and something has a name like it."""
    return (
        "does it say whose a scan is? nothing here is called patient, so one person's scans could stand on both sides of the split; "
        f"rename {name} to patient, or to something else if it is not that"
    )


def near_columns(names: Sequence[str]) -> dict[str, str]:
    """Known column that is missing -> the first of the names that others use for it, or that is a slip of the pen away."""
    free = [name for name in names if name not in KNOWN_COLUMNS]
    near = {}
    for known in KNOWN_COLUMNS:
        if known in names:
            continue
        others = OTHERWISE.get(known, "").split()
        found = [name for name in free if _plain(name) in others] or [name for name in free if _is_slip(_plain(name), known)]
        if found:
            near[known] = found[0]
    return near


def _is_slip(name: str, known: str) -> bool:
    """Nearly the same letters, the first one too; inpatient and patientkg are no slips of patient, patients is one."""
    known = _plain(known)
    if name[:1] != known[:1] or (name.startswith(known) and name not in (known, f"{known}s")):
        return False
    return SequenceMatcher(None, name, known).ratio() > 0.85


# How ages beyond a limit are written: BIDS and HIPAA have 89+, others >89 or 90 and over.
_TOP_CODE = re.compile(r"(?:>=?|\u2265)\s*(\d+(?:\.\d+)?)|(\d+(?:\.\d+)?)\s*(?:\+|(?:and|or) (?:over|above|older))", re.IGNORECASE)
_AGE = re.compile(r"(?:^|[^a-z])age(?:[^a-z]|$)")


def without_top_codes(table: pd.DataFrame, place_of: PlaceOf) -> tuple[pd.DataFrame, list[str]]:
    """The table with the number of a limit, 89, in place of an age beyond it, ``89+``, and a note on each such column."""
    table, notes = table.copy(), []
    for name in map(str, table.columns):
        if not _AGE.search(re.sub("([a-z])([A-Z])", r"\1 \2", name).lower()):
            continue
        found = [(row, match) for row, cell in enumerate(table[name].tolist()) if (match := _TOP_CODE.fullmatch(cell))]
        if found:
            named = [f"{match[0]!r} in {place_of(row, name)}" for row, match in found]
            notes.append(naming(f"column {name}: {len(found)} ages beyond a limit count as the limit itself", named))
            table[name] = table[name].replace({match[0]: match[1] or match[2] for _, match in found})
    return table, notes


def odd_cells(table: pd.DataFrame, place_of: PlaceOf) -> list[str]:
    """Notes on columns of metadata in which most cells are numbers and a few are none, so that all would be taken for names."""
    return [note for column in table.columns if column not in KNOWN_COLUMNS for note in _odd_in(column, table[column], place_of)]


_WITH_COMMA = r"[+-]?(?:\d+,\d+|\d{1,3}(?:\.\d{3})+,\d+)"  # 70,5 and 1.070,5


def _odd_in(name: str, cells: pd.Series, place_of: PlaceOf) -> list[str]:
    given = ~cells.isin(MISSING).to_numpy()
    is_number = pd.to_numeric(cells, errors="coerce").notna().to_numpy()
    odd = given & ~is_number
    if not odd.any():
        return []
    with_commas = cells.str.fullmatch(_WITH_COMMA).to_numpy()
    if with_commas.any() and (is_number | with_commas)[given].all():
        at = np.flatnonzero(with_commas)
        return [_said(name, len(at), "have a decimal comma", "write a point", cells, at, place_of)]
    if is_number.sum() < 2:
        return []
    wrong = odd & ~cells.str.lower().isin(ALSO_MISSING).to_numpy()
    if wrong.sum() > max(1, (is_number | wrong).sum() // 10):
        return []  # names, some of which are digits
    return [_said(name, int(odd.sum()), "are no numbers", "correct them, or write n/a", cells, np.flatnonzero(odd), place_of)]


def _said(name: str, num: int, what: str, remedy: str, cells: pd.Series, at: np.ndarray, place_of: PlaceOf) -> str:
    text = f"column {name}: {num} of its {len(cells)} cells {what}, so all of them are taken for names; {remedy}"
    return naming(text, [f"{cells.iloc[row]!r} in {place_of(int(row), name)}" for row in at])
