"""What a user has to know of a collection, a line each: what is named of the disk stands last, so that it can be taken off."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN = 3


def naming(text: str, names: Sequence[str]) -> str:
    """A note with some of the names that it is about, in brackets at its end, where `without_names` finds them."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{text} ({', '.join(names[:SHOWN])}{more})"


def without_names(note: str) -> str:
    """A note without what `naming` put to its end."""
    return note.partition(" (")[0]


class Counted:
    """What a source found and did not take (or took with a doubt): one note per reason, with the count and the first names.

    hidden  the notes have counts only
    """

    def __init__(self, *, hidden: bool = False) -> None:
        self._hidden = hidden
        self._names: dict[str, list[str]] = {}

    def add(self, reason: str, name: str) -> None:
        """Count one more item. The reason follows the count, as in ``files are no DICOM images``."""
        self._names.setdefault(reason, []).append(name)

    def notes(self) -> list[str]:
        """One line per reason, in the order in which the reasons came up."""
        found = ((f"{len(names)} {reason}", names) for reason, names in self._names.items())
        return [text if self._hidden else naming(text, names) for text, names in found]
