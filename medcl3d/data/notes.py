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
