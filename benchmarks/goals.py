"""The goals of speed and memory beside what was measured, as the first section of the page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.inference import ALONE as NETWORK
from benchmarks.inference import FEATURES, MONAI
from benchmarks.inference import TITLE as PREDICTIONS
from benchmarks.loss_peers import LEAST as PRODUCTS
from benchmarks.loss_peers import TITLE as LOSSES
from benchmarks.measure import Table
from benchmarks.memory import OURS as RUN
from benchmarks.memory import TITLE as MEMORY
from benchmarks.pipeline import BATCHGENERATORS, READING, RESAMPLING, UNCACHED
from benchmarks.pipeline import TITLE as CACHED
from benchmarks.plain_loop import ALONE, ENCODERS, PARTS, PLAIN
from benchmarks.plain_loop import TITLE as STEPS
from benchmarks.prepare import SPACINGS, UNCHANGED
from benchmarks.prepare import TITLE as PREPARING
from benchmarks.startup import ALONE as PYTORCH
from benchmarks.startup import TITLE as START

TITLE = "Goals"
COLUMNS = ("work", "figure", "goal", "measured", "result", "what limits it")
NUMBER = re.compile(r"([\d.]+)(?: \(([\d.]+) to ([\d.]+)\))?")


@dataclass(frozen=True)
class Goal:
    """One goal, and the row of a table that shows whether it is met.

    table, row  title of the table, and the first cells of the row
    bound       the goal: at least this, or at most if `most`
    limits      of works that cannot be left out: the first cells of the row, and what the work is
    column      of the figure
    relative    whether the figure of the limit is that of its row divided into that of `row`, as for
                speed-ups of medcl3d; else it is that of its row
    """

    work: str
    figure: str
    table: str
    row: tuple[str, ...]
    bound: float
    most: bool = False
    limits: tuple[tuple[tuple[str, ...], str], ...] = ()
    column: int = -1
    relative: bool = True

    def line(self, rows: Sequence[Sequence[str]]) -> tuple[str, ...] | None:
        """The row of the table of goals; None if it was not measured."""
        cell = _cell(rows, self.row, self.column)
        if cell is None:
            return None
        mean, low, high = cell
        sign = -1 if self.most else 1
        if sign * (mean - self.bound) >= 0:
            result = "met"
        else:
            result = "not distinguishable" if low <= self.bound <= high else "missed"
        goal = f"at {'most' if self.most else 'least'} {self.bound:g}"
        measured = f"{mean:g}" if low == high else f"{mean:g} ({low:g} to {high:g})"
        return self.work, self.figure, goal, measured, result, self._limit(rows, mean)

    def _limit(self, rows: Sequence[Sequence[str]], mean: float) -> str:
        found = [(what, _cell(rows, row, self.column)) for row, what in self.limits]
        return "; ".join(
            f"{mean / cell[0] if self.relative else cell[0]:.2g}: {what}"
            for what, cell in found
            if cell is not None
        )


def _cell(rows: Sequence[Sequence[str]], first: Sequence[str], column: int) -> tuple[float, ...] | None:
    """Mean, low and high in the row that begins with `first`; None if it has no number."""
    row = next((one for one in rows if tuple(one[: len(first)]) == tuple(first)), None)
    found = NUMBER.fullmatch(row[column]) if row is not None else None
    return None if found is None else tuple(float(text or found[1]) for text in found.groups())


def goals() -> Iterator[Goal]:
    """All goals."""
    for title, monai, name in (
        (CACHED, "MONAI CacheDataset", "cached"),
        (UNCACHED, "MONAI PersistentDataset", "not cached"),
    ):
        for size in ("32 x 32 x 32", "96 x 96 x 96"):
            alone = ((size, READING), "crops without views"), ((size, RESAMPLING), "geometry of views alone")
            for peer, least in (("TorchIO Queue", 10), (monai, 5), (BATCHGENERATORS, 3)):
                yield Goal(
                    f"crops of {size}, {name}",
                    f"speed-up over {peer}",
                    title,
                    (size, peer),
                    least,
                    limits=alone,
                )
    for number in ("256", "512", "1024", "2048", "4096"):
        yield Goal(
            f"loss of {number} embeddings",
            "speed-up over the matrix",
            LOSSES,
            (number, "augmented_views"),
            1,
            limits=(((number, PRODUCTS), PRODUCTS),),
            relative=False,
        )
    for encoder, ratio in zip(ENCODERS, (1.3, 3), strict=True):
        step = Goal(
            f"step, {encoder}",
            "speed-up over a plain loop",
            STEPS,
            (encoder, PLAIN),
            ratio,
            limits=(((encoder, ALONE), "network, loss and optimiser alone"),),
        )
        yield step
        parts = "sum of its parts, each alone, over the step"
        yield replace(step, figure=parts, row=(encoder, PARTS), bound=0.95, limits=())
        yield Goal(f"run, {encoder}", "peak memory over the least", MEMORY, (encoder, RUN), 1.3, most=True)
    for title, work in ((PREDICTIONS, "prediction"), (FEATURES, "features")):
        for scan in ("96 x 96 x 96", "192 x 96 x 48"):
            yield Goal(f"{work} of {scan}", "speed-up over MONAI", title, (scan, MONAI), 1)
            yield Goal(f"{work} of {scan}", "speed-up over the network alone", title, (scan, NETWORK), 0.9)
    for spacing in SPACINGS:
        yield Goal(
            f"prepare, voxels of {spacing}",
            "speed-up over nibabel and MONAI",
            PREPARING,
            (spacing, "nibabel and MONAI"),
            1,
            limits=(((spacing, UNCHANGED), "without the body and its intensities"),),
        )
    yield Goal(
        "first step of a command",
        "processor seconds",
        START,
        ("medcl3d pretrain",),
        3,
        most=True,
        limits=(((PYTORCH,), "import of PyTorch"),),
        column=1,
        relative=False,
    )


def goals_of(file: Path) -> Table:
    """The goals beside the figures in a file of numbers (.json) of this package."""
    tables: Mapping[str, Any] = {one["title"]: one for one in json.loads(file.read_text())["tables"]}
    lines = (goal.line(tables[goal.table]["rows"]) for goal in goals() if goal.table in tables)
    note = (
        "Each goal beside its figure in the sections that follow, with the 95% interval over turns; "
        "runs of one commit on one machine may differ by more. Not "
        "distinguishable: the mean misses the goal, the interval contains it. What limits it: the figure "
        "that would be reached if only this work remained."
    )
    return Table(TITLE, COLUMNS, tuple(line for line in lines if line is not None), note)
