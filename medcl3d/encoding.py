"""Names of files and texts that this process cannot write, since its locale knows no UTF-8 or they are no text."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from medcl3d.errors import DataError, MachineError, UserError

REMEDY = "set PYTHONUTF8=1, or a locale such as LC_ALL=C.UTF-8"


def refuse_other_encoding(names: Iterable[tuple[str, str]]) -> None:
    """MachineError if names of files, (place, name) each, are more than ASCII and the locale of this process is not UTF-8."""
    encoding = sys.getfilesystemencoding()
    if encoding.lower().replace("-", "") == "utf8":
        return
    for place, name in names:
        if not name.isascii():
            raise MachineError(
                f"{_shown(place)}: {_shown(name)} is not ASCII, and this process takes names of files for {encoding}; {REMEDY}"
            )


def unwritable(error: UnicodeEncodeError) -> UserError:
    """What to say of a text that could not be written: of the machine if its locale is not UTF-8, else of the text."""
    text = _shown(error.object)
    shown = text if len(text) <= 200 else f"{text[:200]}..."
    if error.encoding.lower().replace("-", "") != "utf8":
        return MachineError(f"{shown}: cannot be written as {error.encoding}, the encoding of this process; {REMEDY}")
    return DataError(f"{shown}: is not UTF-8; rename the file, or write it in whole characters")


def show_any_text() -> None:
    """Let the standard streams write what they cannot encode as an escape, in the place of an error."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", "") == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _shown(text: str) -> str:
    return text.encode("ascii", errors="backslashreplace").decode()
