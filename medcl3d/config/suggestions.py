"""Suggestions for misspelt names."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, get_args

from medcl3d.core.errors import ConfigError


def nearest(name: str, known: Sequence[str]) -> str:
    """The most similar of some names; "" if none is similar."""
    return next(iter(get_close_matches(name, known, n=1, cutoff=0.5)), "")


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name."""
    near = nearest(name, known)
    return f"; did you mean {near!r}?" if near else ""


def require_one_of(field: str, value: object, words: Any) -> None:
    """ConfigError unless a value is one of a `Literal`'s, for functions called without a configuration."""
    known = [str(word) for word in get_args(words)]
    if value not in get_args(words):
        problem = f"no such choice{did_you_mean(str(value), known)}"
        raise ConfigError(field, value, problem, f"choose from {', '.join(known)}")
