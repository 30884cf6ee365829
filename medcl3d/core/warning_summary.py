"""Warning summaries: warnings that differ only in numbers become one line with the number of scans."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MAX_LINES = 8  # kinds of warnings, or refused scans; a report has all
_NUMBER = re.compile(r"-?\d[\d.]*(e[+-]?\d+)?")


def summarise_warnings(
    warnings: Iterable[tuple[str, Sequence[str]]], total: int, what: str = "scans"
) -> list[str]:
    """Group warnings that differ only in numbers; the most frequent first, with an example.

    warnings  (scan, its warnings) of each scan, or of other items named by `what`
    total     the number of all items
    """
    kinds: dict[str, tuple[str, str]] = {}
    counts: dict[str, int] = {}
    for scan, texts in warnings:
        for kind, text in {_NUMBER.sub("#", text): text for text in texts}.items():
            kinds.setdefault(kind, (text, scan))
            counts[kind] = counts.get(kind, 0) + 1
    ranked = sorted(kinds, key=lambda kind: -counts[kind])
    lines = [
        f"warning: {counts[kind]} of {total} {what}, as {kinds[kind][1]}: {kinds[kind][0]}"
        for kind in ranked[:MAX_LINES]
    ]
    return [*lines, *_more(len(ranked) - MAX_LINES, "kinds of warnings")]


def first_reasons(reasons: Sequence[str]) -> list[str]:
    """The first reasons, each of which names its file, and the number of the others."""
    return [*reasons[:MAX_LINES], *_more(len(reasons) - MAX_LINES, "scans")]


def _more(count: int, what: str) -> list[str]:
    return [f"... and {count} more {what}"] if count > 0 else []
