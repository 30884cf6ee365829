"""Notes on a collection, one line each; names of files and people are at the end and can be removed."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN = 3


def naming(text: str, names: Sequence[str]) -> str:
    """A note with the first names that it concerns, in brackets at its end for `without_names`."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{text} ({', '.join(names[:SHOWN])}{more})"


def without_names(note: str) -> str:
    """A note without the names that `naming` added."""
    return note.partition(" (")[0]


class Counted:
    """Skipped or doubtful items of a source: one note per reason, with the count and the first names.

    redact  the notes have counts only
    """

    def __init__(self, *, redact: bool = False) -> None:
        self._redact = redact
        self._names: dict[str, list[str]] = {}

    def add(self, reason: str, name: str) -> None:
        """Count one item. The reason follows the count, as in ``files are not DICOM images``."""
        self._names.setdefault(reason, []).append(name)

    def notes(self) -> list[str]:
        """One line per reason, in order of appearance."""
        found = ((f"{len(names)} {reason}", names) for reason, names in self._names.items())
        return [text if self._redact else naming(text, names) for text, names in found]
