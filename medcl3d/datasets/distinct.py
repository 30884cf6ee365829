"""Distinct cells of a column, and pattern matches among them, with few calls for any number of cells."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pandas as pd


def distinct(cells: pd.Series) -> list[str]:
    """The distinct cells, in order of first appearance."""
    return list(dict.fromkeys(cells.to_numpy(dtype=object).tolist()))


def changed(texts: Sequence[str], change: Callable[[str], str]) -> list[str]:
    """Texts changed by a function that works line by line, called once on all of them."""
    lines = change("\n".join(texts)).split("\n")
    return lines if len(lines) == len(texts) else [change(text.replace("\n", " ")) for text in texts]


def matching(texts: Sequence[str], pattern: str) -> list[str]:
    """The texts that a pattern matches as a whole, ignoring case."""
    whole = re.compile(f"^(?:{pattern})$", re.IGNORECASE | re.MULTILINE)
    return [text for text in texts if whole.fullmatch(text)] if whole.search("\n".join(texts)) else []
