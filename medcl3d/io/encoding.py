"""File names and texts that this process cannot write: the locale is not UTF-8, or the text is invalid."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from medcl3d.core.errors import DataError, MachineError, UserError

REMEDY = "set PYTHONUTF8=1, or a locale such as LC_ALL=C.UTF-8"


def refuse_other_encoding(names: Iterable[tuple[str, str]]) -> None:
    """MachineError if a file name, in (place, name) pairs, is not ASCII and the locale is not UTF-8."""
    encoding = sys.getfilesystemencoding()
    if encoding.lower().replace("-", "") == "utf8":
        return
    for place, name in names:
        if not name.isascii():
            problem = f"{_escaped(name)} is not ASCII, but this process reads file names as {encoding}"
            raise MachineError(_escaped(place), problem, REMEDY)


def unwritable(error: UnicodeEncodeError) -> UserError:
    """The error for text that cannot be written: MachineError if the locale is not UTF-8, else DataError."""
    text = _escaped(error.object)
    shown = text if len(text) <= 200 else f"{text[:200]}..."
    if error.encoding.lower().replace("-", "") != "utf8":
        problem = f"cannot be written as {error.encoding}, the encoding of this process"
        return MachineError(shown, problem, REMEDY)
    return DataError(shown, "is not UTF-8", "rename the file, or replace its half characters")


def escape_unencodable() -> None:
    """Make the standard streams escape characters that they cannot encode, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", "") == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _escaped(text: str) -> str:
    return text.encode("ascii", errors="backslashreplace").decode()
