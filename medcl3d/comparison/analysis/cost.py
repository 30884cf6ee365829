"""Cost of each arm: seconds and memory, as recorded by its runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.runs import Run
from medcl3d.comparison.run.launch import COST
from medcl3d.comparison.run.timing import metric_rows
from medcl3d.io.json_file import read_record


@dataclass(frozen=True)
class Cost:
    """Mean time of one arm over its runs, largest memory of any, and steps; None if not recorded."""

    arm: str
    pretraining_s: float | None
    measuring_s: float | None
    peak_memory_mib: float | None
    pretraining_steps: int = 0
    measuring_steps: int = 0


def seconds_of(run: Run) -> float | None:
    """Total seconds of the run; if not recorded, the seconds of its logged steps."""
    noted = read_record(run.folder / COST).get("seconds")
    if noted is not None:
        return float(noted)
    before, total, size = 0.0, 0.0, run.size / max(1, run.steps)
    for row in metric_rows(run.folder):
        if row.get("samples_per_s", 0) > 0:
            total += (row["step"] - before) * size / row["samples_per_s"]
        before = row["step"]
    return total or None


def costs(runs: Sequence[Run], config: CompareConfig) -> list[Cost]:
    """One row per arm."""
    found = []
    for name, arm in config.arms.items():
        first = [run for run in runs if not run.measures and run.name == arm.pretraining]
        second = [run for run in runs if run.measures and run.name == name]
        memory = [read_record(run.folder / COST).get("peak_memory_mib") for run in (*first, *second)]
        most = max((value for value in memory if value is not None), default=None)
        steps = (max((run.steps for run in group), default=0) for group in (first, second))
        found.append(Cost(name, _mean(first), _mean(second), most, *steps))
    return found


def _mean(runs: Sequence[Run]) -> float | None:
    known = [seconds for run in runs if (seconds := seconds_of(run)) is not None]
    return float(np.mean(known)) if known else None
