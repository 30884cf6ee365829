"""Read untrusted CSV and TSV tables as text: ``001`` and ``NA`` are not converted."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pandas as pd

from medcl3d.core.errors import DataError
from medcl3d.io.regular_file import read_regular

# sep=; with or without quotes, possibly followed by delimiters, since some programs pad rows.
_DELIMITER = re.compile(r"""\s*["']?sep=(\\t|[^\w"'\\])["']?[,;\t ]*""", re.IGNORECASE)


def read_table(path: Path) -> pd.DataFrame:
    """Read a table as text. Raises DataError like `read_rows`."""
    names, rows = read_rows(path)
    return pd.DataFrame(list(rows.values()), columns=names, dtype=str)


def read_rows(path: Path) -> tuple[list[str], dict[int, list[str]]]:
    """The column names of a table, and line number -> stripped cells.

    Plain lists, since data frames for many small tables would cost more than reading them. Blank lines are
    skipped. A first line ``sep=;``, as Excel writes it, sets the delimiter. Raises DataError, with the line:
    not a table, another encoding, ragged rows, duplicate or unnamed columns, an open quote.
    """
    text = _text(path, read_regular(path, "needed is a table"))
    header, _, rest = text.partition("\n")
    line, named = 1, _DELIMITER.fullmatch(header.rstrip("\r"))
    delimiter = max(",;\t|", key=header.count)
    if named:  # Excel's first line, which sets the delimiter of the others
        text, line = rest, 2
        delimiter = "\t" if named[1] == "\\t" else named[1]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    above = line - 1
    rows: dict[int, list[str]] = {}
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                rows[line] = cells
            line = above + reader.line_num + 1  # a quoted cell may span several lines; the first one counts
    except csv.Error as error:
        raise DataError(f"{path}:{line}", error, "is a quote left open there?") from None
    if not rows:
        raise DataError(path, "the table is empty", "its first line names the columns")
    return _checked(path, rows)


def _text(path: Path, raw: bytes) -> str:
    if raw.startswith(b"PK\x03\x04"):
        raise DataError(path, "is a workbook or another zip archive, not a table", "save the sheet as CSV")
    try:
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        if "\0" in text:
            line = 1 + text.partition("\0")[0].count("\n")
            raise DataError(f"{path}:{line}", "a zero byte (UTF-16?)", "save the table as UTF-8")
        return text
    except UnicodeDecodeError as error:
        line = 1 + raw.count(b"\n", 0, error.start)
        problem = "the text is not UTF-8 (latin-1?)"
        raise DataError(f"{path}:{line}", problem, "save the table as UTF-8") from None


def _checked(path: Path, rows: dict[int, list[str]]) -> tuple[list[str], dict[int, list[str]]]:
    """The first row as names, and all other rows with the same length."""
    head, names = next(iter(rows.items()))
    del rows[head]
    for line, cells in rows.items():
        while len(cells) > len(names) and not cells[-1]:  # delimiters at the end of the line
            cells.pop()
        if len(cells) != len(names):
            remedy = "add the missing delimiters"
            if len(cells) > len(names):
                remedy = "quote cells that contain the delimiter, close quotes"
            raise DataError(f"{path}:{line}", f"{len(cells)} cells under {len(names)} column names", remedy)
    # Columns without a name and without values: a delimiter at the end of each line.
    spare = [i for i, name in enumerate(names) if not name and not any(cells[i] for cells in rows.values())]
    indices = [[str(n + first) for n in range(len(rows))] for first in (0, 1)]
    if not names[0] and [cells[0] for cells in rows.values()] in indices:
        spare.insert(0, 0)  # the index of a data frame, as pandas and R write it
    for i in reversed(spare):
        del names[i]
        for cells in rows.values():
            del cells[i]
    if "" in names:
        problem = f"column {names.index('') + 1} has no name"
        raise DataError(f"{path}:{head}", problem, "give it one, or delete it")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}:{head}", f"columns {twice} occur twice", "keep one of each")
    return names, rows
