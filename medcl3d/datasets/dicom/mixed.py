"""Several volumes under one SeriesInstanceUID: echoes, times, acquisitions, split by unambiguous headers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from medcl3d.core.errors import DataError
from medcl3d.datasets.dicom.order import sorted_slices
from medcl3d.datasets.dicom.slices import MARKS, Slice

# Blocks of slices closer than this many gaps may be one volume with missing slices.
FEWEST_GAPS = 3.0
MOST_LEFT_OUT = 0.25  # share of slices in groups too small for a volume


@dataclass(frozen=True)
class Part:
    """A volume of a series.

    marks     fields that distinguish it from the others of its series, with their text; () for a whole series
    slices    in order
    warnings  warnings on the slices
    """

    marks: tuple[tuple[str, str], ...]
    slices: tuple[Slice, ...]
    warnings: tuple[str, ...]


def volumes_of(slices: Sequence[Slice], min_slices: int) -> tuple[list[Part], str]:
    """The volumes of a series, and a note if there are several.

    A series that is a regular grid and does not alternate between volumes is one volume. Otherwise it is
    split by the fewest of `MARKS` for which each part is a regular grid of at least `min_slices` slices. A
    few remaining slices, as of scouts, are skipped and counted. Parts that continue each other are not split:
    they may be one volume with missing slices.

    DataError, naming files, if the slices are neither one volume nor several.
    """
    whole, refusal = None, None
    try:
        whole = sorted_slices(slices)
    except DataError as error:
        refusal = error
    # Files of a regular grid without a mark do not split it.
    ignored = set() if whole is None else {""}
    varying = [at for at in range(len(MARKS)) if len({one.marks[at] for one in slices} - ignored) > 1]
    for count in range(1, len(varying) + 1):
        for chosen in combinations(varying, count):
            parts = _parts(slices, chosen, min_slices, may_leave_out=whole is None)
            if parts:
                return parts, _line(parts, chosen, slices)
    if whole is not None:
        return [Part((), tuple(whole[0]), whole[1])], ""
    names = ", ".join(MARKS[at] for at in varying)
    hint = f" (its slices differ in {names}, which does not split them into whole volumes)" if names else ""
    raise DataError(f"{refusal}{hint}")


def _line(parts: Sequence[Part], chosen: Sequence[int], slices: Sequence[Slice]) -> str:
    kept = {tuple(text for _, text in part.marks) for part in parts}
    others = sum(tuple(_plain(one.marks[at]) for at in chosen) not in kept for one in slices)
    rest = f"; {others} other slices were skipped" if others else ""
    volumes = f"{len(parts)} volumes" if len(parts) > 1 else "one volume and others"
    marks = " and ".join(MARKS[at] for at in chosen)
    return f"holds {volumes} under one SeriesInstanceUID, split by {marks}{rest}"


def _plain(text: str) -> str:
    return text.replace("\\", "/")


def _parts(
    slices: Sequence[Slice], chosen: Sequence[int], min_slices: int, *, may_leave_out: bool
) -> list[Part]:
    """The volumes by some marks, or [] if the marks do not separate volumes."""
    groups: dict[tuple[str, ...], list[Slice]] = {}
    for one in slices:
        groups.setdefault(tuple(one.marks[at] for at in chosen), []).append(one)
    num_small = sum(len(group) for group in groups.values() if len(group) < min_slices)
    num_allowed = MOST_LEFT_OUT * len(slices) if may_leave_out else 0
    if num_small > num_allowed or _continue_each_other(list(groups.values())):
        return []
    parts = []
    for texts in sorted(groups, key=lambda texts: [_as_number(text) for text in texts]):
        if len(groups[texts]) >= min_slices:
            try:
                ordered, warnings = sorted_slices(groups[texts])
            except DataError:
                return []
            marks = tuple((MARKS[at], _plain(text)) for at, text in zip(chosen, texts, strict=True))
            parts.append(Part(marks, tuple(ordered), warnings))
    return parts


def _as_number(text: str) -> tuple[float, str]:
    """Sort key: 2 before 10, texts alphabetically."""
    try:
        return float(text), text
    except ValueError:
        return 0.0, text


def _continue_each_other(groups: Sequence[Sequence[Slice]]) -> bool:
    """Whether parallel blocks of slices adjoin without a clear gap, so that they may be one volume."""
    blocks: dict[tuple[float, ...], list[tuple[float, float, float]]] = {}
    for group in groups:
        normal = np.cross(*group[0].orientation)
        depths = np.sort([one.position @ normal for one in group])
        gap = float(np.median(np.diff(depths))) if len(depths) > 1 else 0.0
        block = float(depths[0]), float(depths[-1]), gap
        blocks.setdefault(tuple(np.round(normal, 2) + 0.0), []).append(block)
    for parallel in blocks.values():
        usual = max(gap for _, _, gap in parallel)
        end = -np.inf
        for low, high, _ in sorted(parallel):
            if end < low - 1e-3 and low - end <= FEWEST_GAPS * usual + 1e-3:
                return True
            end = max(end, high)
    return False
