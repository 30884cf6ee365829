"""Lines that describe raw scans, for the user of `medcl3d init`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medcl3d.datasets.label_pairs import Grid
from medcl3d.io.nifti_header import is_identity
from medcl3d.proposal.raw_collection import RawCollection
from medcl3d.proposal.sizes import AXES

NUM_ROWS = 5
SHOWN = ("path", "patient", "session", "modality", "label")
WIDTH = 44  # characters of a cell; the end of a path is more specific than its beginning
NAMES = ("right", "front", "head")


def describe(target: Path, raw: RawCollection, grids: pd.DataFrame) -> Iterator[str]:
    """What was found: counts, modalities, label maps, geometry, frames, then rows of the table and notes."""
    table = raw.table
    how = "a table is proposed" if raw.proposed else f"read by the source {raw.source}"
    sessions = len(table[[name for name in ("patient", "session") if name in table]].drop_duplicates())
    yield f"{target}: {how}"
    yield f"scans: {len(table)}, of {table['patient'].nunique()} patients in {sessions} sessions"
    modalities = _cells(table, "modality").replace("", "unknown").value_counts()
    yield "modalities: " + ", ".join(f"{name} {count}" for name, count in modalities.items())
    labels = _cells(table, "label")
    owners = table["patient"][labels != ""]
    for_whom = f", for {len(owners)} scans of {owners.nunique()} patients" if len(owners) else ""
    yield f"label maps: {labels[labels != ''].nunique()}{for_whom}"
    frames = _cells(table, "frame")
    shared = frames[frames.duplicated(keep=False) & (frames != "")]
    whose = f", with {len(shared)} scans that share their millimetres" if len(shared) else ""
    yield f"frames of several scans: {shared.nunique()}{whose}"
    yield from _geometry(grids, raw.grids)
    yield f"{min(NUM_ROWS, len(table))} of {len(table)} rows:"
    yield from rows_of(table)
    if table["patient"].nunique() == 1:
        yield f"warning: one patient, {table['patient'].iloc[0]!r}: a split into training and test needs two"
    yield from raw.notes


def _cells(table: pd.DataFrame, name: str) -> pd.Series:
    """A column, or empty cells."""
    return table[name] if name in table else pd.Series("", index=table.index)


def _geometry(grids: pd.DataFrame, of_files: Sequence[Grid]) -> Iterator[str]:
    for title, columns, unit in (
        ("spacing", [f"{axis}_mm" for axis in AXES], " mm"),
        ("shape", list(AXES), " voxels"),
    ):
        values = grids[columns].to_numpy(dtype=float)
        parts = [
            f"{name} {low:.3g}" + (f" to {high:.3g}" if high > low else "")
            for name, low, high in zip(NAMES, values.min(axis=0), values.max(axis=0), strict=True)
        ]
        median = " x ".join(f"{value:.3g}" for value in np.median(values, axis=0))
        yield f"{title}: {', '.join(parts)}{unit}; median {median}"
    lost = sum(is_identity(grid.affine) for grid in of_files)
    if lost:
        text = f"warning: {lost} files have voxels of 1 mm and the origin 0, so their size may be lost"
        yield f"{text}; if you know it, plan these scans alone and prepare with assume_spacing_mm=[x,y,z]"
    times = sum(len(grid.shape) == 4 for grid in of_files)
    if times:
        choices = "channels=all (channels), channels=first, or channels=split (a time series)"
        yield f"warning: {times} files have a fourth axis; add to the command `prepare`: {choices}"


def rows_of(table: pd.DataFrame) -> list[str]:
    """A few rows of a table, from its beginning to its end, as aligned text."""
    columns = [name for name in SHOWN if name in table and (table[name] != "").any()]
    rows = np.unique(np.linspace(0, len(table) - 1, NUM_ROWS).astype(int))
    cells = [columns, *(table[columns].iloc[row].map(_short).tolist() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  " + "  ".join(f"{cell:{w}}" for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


def _short(text: str) -> str:
    return text if len(text) <= WIDTH else f"...{text[3 - WIDTH :]}"
