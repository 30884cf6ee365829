"""Notes on a collection, one line each; names of files and people are apart from the text."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN = 3


class Note(str):
    """A line on a collection: `text`, then the first names that it concerns, in brackets.

    text   the note without names of files or people
    names  all of them
    """

    text: str
    names: tuple[str, ...]

    def __new__(cls, text: str, names: Sequence[str] = ()) -> Note:
        """A note without names is its text alone."""
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        made = super().__new__(cls, f"{text} ({', '.join(names[:SHOWN])}{more})" if names else text)
        made.text, made.names = text, tuple(names)
        return made

    def __reduce__(self) -> tuple[type[Note], tuple[str, tuple[str, ...]]]:
        """A copy in another process."""
        return Note, (self.text, self.names)


def naming(text: str, names: Sequence[str]) -> str:
    """A note with the names that it concerns."""
    return Note(text, names)


def without_names(note: str) -> str:
    """A note without its names."""
    return note.text if isinstance(note, Note) else note


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
        return [
            Note(f"{len(names)} {reason}", () if self._redact else names)
            for reason, names in self._names.items()
        ]
