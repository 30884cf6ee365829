"""Slices sorted by position: a regular grid, or refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medcl3d.core.errors import DataError
from medcl3d.datasets.dicom.slices import Slice

# Relative tolerance of a gap (positions have few digits), and of lateral offsets in pixels.
GAP_TOLERANCE, LATERAL_TOLERANCE = 0.02, 0.5
FEW_MISSING = 3  # in one gap: from this number on it may separate two acquisitions
SEPARATE = "move them to separate series"
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def sorted_slices(slices: Sequence[Slice]) -> tuple[list[Slice], tuple[str, ...]]:
    """The slices sorted along their normal, without duplicates; and warnings on duplicates.

    DataError, naming files: different sizes or directions, two slices at one position, a gap, uneven gaps,
    positions off one line.
    """
    first = slices[0]
    _refuse_varying(slices)
    normal = np.cross(*first.orientation)
    ordered = sorted(slices, key=lambda s: (float(s.position @ normal), s.uid, s.name))
    kept, duplicates = [ordered[0]], []
    # After faulty anonymisation, all instances may share a UID.
    is_unique = len({one.uid for one in slices}) > 1
    for one in ordered[1:]:
        last = kept[-1]
        is_same = is_unique and (one.uid, one.marks) == (last.uid, last.marks)
        if is_same and np.allclose(one.position, last.position, atol=1e-3):
            duplicates.append(one.name)
        else:
            kept.append(one)
    warnings = (f"duplicate slices, one copy skipped: {', '.join(duplicates[:5])}",) if duplicates else ()
    if len(kept) < 2:
        raise DataError(f"a single slice, {kept[0].name}, is not a volume")
    _refuse_uneven(kept, normal)
    return kept, warnings


def _refuse_varying(slices: Sequence[Slice]) -> None:
    first = slices[0]
    grids = np.array([[*one.shape, *one.spacing_mm] for one in slices])
    has_other_size = (grids[:, :2] != grids[0, :2]).any(axis=1)
    other = np.flatnonzero(has_other_size | (np.abs(grids[:, 2:] / grids[0, 2:] - 1) > 1e-3).any(axis=1))
    if len(other):
        one = slices[other[0]]
        problem = f"{first.name} has {_grid(first)} and {one.name} {_grid(one)}: not one volume"
        raise DataError("", problem, SEPARATE)
    turned = np.abs(np.array([one.orientation for one in slices]) - first.orientation).max(axis=(1, 2)) > 1e-3
    if turned.any():
        pair = f"{first.name} and {slices[int(turned.argmax())].name}"
        raise DataError("", f"the orientation varies: {pair} are in different planes", SEPARATE)


def _grid(one: Slice) -> str:
    return f"{one.shape[0]}x{one.shape[1]} voxels of {one.spacing_mm[0]:g}x{one.spacing_mm[1]:g} mm"


def _refuse_uneven(slices: Sequence[Slice], normal: np.ndarray) -> None:
    positions = np.array([one.position for one in slices])
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    for at, gap in enumerate(gaps):
        pair = f"{slices[at].name} and {slices[at + 1].name}"
        if gap < 1e-3:
            problem = f"{pair} have one position: a time series, several echoes, or a copy"
            raise DataError("", problem, SEPARATE)
        if gap > 1.5 * usual:
            missing = max(1, round(gap / usual) - 1)
            problem = f"{missing} slices are missing between {pair}: {gap:g} mm, elsewhere {usual:g} mm"
            other = f", or {SEPARATE} if they are two acquisitions" if missing >= FEW_MISSING else ""
            raise DataError("", problem, f"fetch the series again{other}")
    uneven = int(np.abs(gaps - usual).argmax())
    if abs(gaps[uneven] - usual) > max(GAP_TOLERANCE * usual, 0.01):
        pair = f"{slices[uneven].name} and {slices[uneven + 1].name}"
        distances = f"{gaps[uneven]:g} mm between {pair}, elsewhere {usual:g} mm"
        raise DataError("", f"the slices are unevenly spaced: {distances}", "resample the series")
    line = positions[0] + np.linspace(0, 1, len(slices))[:, None] * (positions[-1] - positions[0])
    off = np.linalg.norm((positions - line) - np.outer((positions - line) @ normal, normal), axis=1)
    if off.max() > LATERAL_TOLERANCE * min(slices[0].spacing_mm):
        problem = f"{slices[int(off.argmax())].name} is {off.max():.1f} mm off the line of the others"
        raise DataError("", problem, "fetch the series again")


def affine_of(slices: Sequence[Slice]) -> np.ndarray:
    """``Float64[4, 4]`` from (column, row, slice) to RAS+ mm, of sorted slices."""
    first = slices[0]
    affine = np.eye(4)
    affine[:3, :2] = (first.orientation * np.array(first.spacing_mm)[:, None]).T
    affine[:3, 2] = step_of(slices)
    affine[:3, 3] = first.position
    return LPS_TO_RAS @ affine


def step_of(slices: Sequence[Slice]) -> np.ndarray:
    """``Float64[3]`` mm, LPS, from one slice to the next."""
    return (slices[-1].position - slices[0].position) / (len(slices) - 1)
