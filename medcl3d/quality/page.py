"""The HTML page of a check: pictures of scans, faults, warnings, and distributions, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd

from medcl3d.core.columns import PATH_COLUMNS
from medcl3d.core.warning_summary import summarise_warnings
from medcl3d.datasets.columns import MISSING
from medcl3d.quality.examine import MAX_PICTURES, Finding
from medcl3d.quality.thumbnail import PLANES

MAX_ROWS = 1000  # per list; report.csv has all
NUM_SHOWN = 9  # pictures, and faults, that are open; the rest is folded
NUM_BINS = 10


@dataclass(frozen=True)
class Bar:
    """The number of scans in a bin; `share` is relative to the fullest bin."""

    text: str
    count: int
    share: float


def render_page(
    target: Path, table: pd.DataFrame, findings: Sequence[Finding], duplicates: Sequence[str]
) -> str:
    """The page as text; it loads no other files."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medcl3d.quality"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    histograms = _histograms(table, findings)
    warned = ((f.scan, f.warnings) for f in findings)
    return environment.get_template("check.html.j2").render(
        target=str(target),
        num=len(findings),
        num_patients=table["patient"].nunique(),
        bad=[f for f in findings if f.fault],
        num_warned=sum(bool(f.warnings) for f in findings),
        warnings=[line.removeprefix("warning: ") for line in summarise_warnings(warned, len(findings))],
        duplicates=duplicates,
        constant=[(name, bars[0].text) for name, bars in histograms if len(bars) == 1],
        histograms=[(name, bars) for name, bars in histograms if len(bars) > 1],
        missing=_missing(table),
        # Scans with warnings first: a picture often explains them.
        pictures=sorted((f for f in findings if f.thumbnail), key=lambda f: not f.warnings),
        planes=PLANES,
        max_pictures=MAX_PICTURES,
        max_rows=MAX_ROWS,
        num_shown=NUM_SHOWN,
    )


def _histograms(table: pd.DataFrame, findings: Sequence[Finding]) -> list[tuple[str, list[Bar]]]:
    facts = [f.facts for f in findings if f.facts]
    columns: dict[str, Sequence[float]] = {}
    for axis, name in enumerate("XYZ"):
        columns[f"voxel size along the file's {name}, mm"] = [f["spacing_mm"][axis] for f in facts]
    for axis, name in enumerate("XYZ"):
        columns[f"voxels along the file's {name}"] = [f["shape"][axis] for f in facts]
    for name in ("p0.5", "median", "p99.5"):
        columns[f"intensity, {name}"] = [f[name] for f in facts if name in f]
    if "session" in table:
        columns["sessions per patient"] = table.groupby("patient")["session"].nunique().tolist()
    columns["scans per patient"] = table.groupby("patient").size().tolist()
    return [(name, bars(values)) for name, values in columns.items() if values]


def bars(values: Sequence[float]) -> list[Bar]:
    """One bar per value if there are few, else `NUM_BINS` bins of equal width from minimum to maximum."""
    found, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    if len(found) <= NUM_BINS:
        texts = [f"{value:g}" for value in found]
    else:
        counts, edges = np.histogram(values, NUM_BINS)
        texts = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges)]
    return [Bar(text, int(n), n / counts.max()) for text, n in zip(texts, counts, strict=True)]


def _missing(table: pd.DataFrame) -> list[tuple[str, int]]:
    columns = [name for name in table if name not in PATH_COLUMNS or name == "label"]
    counts = [(str(name), int(table[name].isin(MISSING).sum())) for name in columns]
    return [(name, count) for name, count in counts if count]
