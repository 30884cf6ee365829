"""Suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from medcl3d.core.errors import ConfigError


def similar(name: str, known: Sequence[str], limit: int = 1, cutoff: float = 0.5) -> list[str]:
    """At most `limit` names whose similarity (difflib's ratio, 0 to 1) is at least `cutoff`, best first."""
    return difflib.get_close_matches(name, known, n=limit, cutoff=cutoff)


def nearest(name: str, known: Sequence[str]) -> str:
    """The most similar of some names; "" if none is similar."""
    return next(iter(similar(name, known)), "")


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name."""
    near = nearest(name, known)
    return f"; did you mean {near!r}?" if near else ""


def require_one_of(field: str, value: object, words: Any) -> None:
    """ConfigError unless a value is one of a `Literal`'s, for functions that are not called through a
    configuration.
    """
    known = [str(word) for word in get_args(words)]
    if value not in get_args(words):
        raise ConfigError(
            field,
            value,
            f"no such choice{did_you_mean(str(value), known)}",
            f"choose from {', '.join(known)}",
        )
