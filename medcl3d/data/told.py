"""Many findings in few lines: what is the same but for its numbers is told once, with how many scans it concerns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MOST = 8  # kinds of warnings, or refused scans, that are told; a report has all
_NUMBER = re.compile(r"-?\d[\d.]*(e[+-]?\d+)?")


def warnings_told(warnings: Iterable[tuple[str, Sequence[str]]], total: int, what: str = "scans") -> list[str]:
    """Lines of the warnings of all scans (or `what`), (scan, its warnings) each; the commonest first, each with the first that has it."""
    kinds: dict[str, tuple[str, str]] = {}
    counts: dict[str, int] = {}
    for scan, texts in warnings:
        for kind, text in {_NUMBER.sub("#", text): text for text in texts}.items():
            kinds.setdefault(kind, (text, scan))
            counts[kind] = counts.get(kind, 0) + 1
    first = sorted(kinds, key=lambda kind: -counts[kind])
    lines = [f"warning: {counts[kind]} of {total} {what}, as {kinds[kind][1]}: {kinds[kind][0]}" for kind in first[:MOST]]
    return [*lines, *_more(len(first) - MOST, "kinds of warnings")]


def reasons_told(reasons: Sequence[str]) -> list[str]:
    """The first of many reasons, which name their files."""
    return [*reasons[:MOST], *_more(len(reasons) - MOST, "scans")]


def _more(count: int, what: str) -> list[str]:
    return [f"... and {count} more {what}"] if count > 0 else []
