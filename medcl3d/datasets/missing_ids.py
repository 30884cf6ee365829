"""Text for missing values: an empty cell in most columns, and never the id of a patient or scan."""

from __future__ import annotations

import unicodedata

import numpy as np
import pandas as pd

from medcl3d.core.columns import KNOWN_COLUMNS
from medcl3d.core.errors import DataError
from medcl3d.core.notes import naming
from medcl3d.datasets.columns import MISSING, PlaceOf, changed, distinct

NEEDED = ("path", "scan", "patient")  # required per scan
_WITH_A_MEANING = (*KNOWN_COLUMNS, "age", "sex")

# In lower case. The first set always means missing; "none" and similar may be a value of metadata.
_EXPORTED = r"nan -nan +nan nat <na> n/a #n/a #na null <null> (null) \n 1.#ind -1.#ind 1.#qnan -1.#qnan"
# Also in other languages: #NV and #WERT! in German, #N/D and #VALOR! in Spanish, ...
_SPREADSHEET_ERRORS = (
    "#ref! #name? #value! #div/0! #num! #null! #spill! #calc! #nv #wert! #bezug! #zahl! #n/d #valor! #valeur!"
)
_WRITTEN = "none <none> nil n.a. n.a na ? ?? ??? - -- --- \u2013 \u2014 . .. ... (blank)"
_ANYWHERE = frozenset((*_EXPORTED.split(), *_SPREADSHEET_ERRORS.split(), "#n/a n/a"))
_IN_KNOWN_COLUMNS = _ANYWHERE.union(_WRITTEN.split())
NOT_KNOWN = frozenset((
    "unknown", "unk", "undefined", "missing", "unassigned", "not known", "not available", "not applicable",
    "not assigned", "tbd", "not recorded", "not reported", "n.d.",
))  # fmt: skip
_INITIALS = "na"  # may be an id or the name of a site


def bare(text: str) -> str:
    """A text in lower case, without surrounding blanks and invisible characters."""
    return (text if text.isascii() else visible(text)).strip().casefold()


def visible(text: str) -> str:
    """A text without invisible characters, as zero-width spaces."""
    return "".join(c for c in text if unicodedata.category(c) != "Cf")


def is_missing_id(text: str) -> bool:
    """Whether a text is empty or means a missing id: ``NaN``, ``sub-nan`` or ``_``. ``NA`` may be an id."""
    text = bare(text).removeprefix("sub-")
    is_word = text in _IN_KNOWN_COLUMNS or text in NOT_KNOWN
    # Not ######, a number wider than the spreadsheet's column.
    has_sign = any(character.isalnum() for character in text)
    return not has_sign or (is_word and text != _INITIALS)


def refuse_missing_ids(table: pd.DataFrame, place_of: PlaceOf) -> None:
    """DataError, with the place, for an id or path that is text for a missing value."""
    for name in NEEDED:
        if name not in table:
            continue
        cells, values = table[name], distinct(table[name])
        short = [cell for cell in values if 0 < len(cell) <= 24]
        missing = [cell for cell in short if is_missing_id(cell)]
        missing += [cell for cell in short if bare(cell) == _INITIALS and (cells == cell).sum() > 1]
        if missing:
            rows = np.flatnonzero(cells.isin(missing)).tolist()
            many = f", as in {len(rows)} rows, which would share one {name}" if len(rows) > 1 else ""
            problem = f"{name} = {cells[rows[0]]!r}: is text for a missing value{many}"
            remedy = f"write the {name} of each scan, or delete the rows"
            raise DataError(place_of(rows[0], name), problem, remedy)


def replace_missing_text(table: pd.DataFrame, place_of: PlaceOf) -> tuple[pd.DataFrame, list[str]]:
    """Empty the cells of text for missing values in all columns but the required ones; and a note per column.

    ``n/a`` in metadata is kept, since it counts as missing everywhere. ``-`` is kept in a column that has
    ``+``.
    """
    table, notes = table.copy(), []
    for name in map(str, table.columns):
        if name in NEEDED:
            continue
        cells, words = table[name], _IN_KNOWN_COLUMNS if name.lower() in _WITH_A_MEANING else _ANYWHERE
        values = distinct(cells)
        kept = ({"-"} if "+" in values else set()) | (set() if name in KNOWN_COLUMNS else set(MISSING))
        texts = zip(values, changed(values, _bare_lines), strict=True)
        missing = [cell for cell, text in texts if text in words and cell not in kept]
        if not missing:
            continue
        is_missing = cells.isin(missing)
        table[name] = cells.mask(is_missing, "")
        reported = np.flatnonzero(is_missing & ~cells.isin(MISSING)).tolist()
        if reported:
            count = f"{len(reported)} of its {len(cells)} cells"
            text = f"column {name}: {count} contain text for a missing value and are read as empty"
            notes.append(naming(text, [f"{cells[row]!r} in {place_of(row, name)}" for row in reported]))
    return table, notes


def _bare_lines(text: str) -> str:
    """Stripped cells, one per line, in the form of `bare`."""
    return (text if text.isascii() else visible(text)).casefold()
