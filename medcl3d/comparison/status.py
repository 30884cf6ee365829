"""`medcl3d status`: the state, step, loss and time left of all runs in some folders."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from medcl3d.comparison.run.execute import last_line
from medcl3d.comparison.run.launch import LOG
from medcl3d.comparison.run.lock import LOCK, is_locked, is_taken
from medcl3d.comparison.run.timing import metric_rows
from medcl3d.core.errors import DataError
from medcl3d.io.json_file import read_record
from medcl3d.io.progress import duration
from medcl3d.io.yaml_file import read_yaml

STATES = ("running", "failed", "killed", "stopped", "not started", "damaged", "done")
MOST_DONE = 10
RECENT_ROWS = 5
WIDTH = 200  # of a table that is not printed to a terminal


@dataclass(frozen=True)
class RunState:
    """The state of one run.

    state   one of `STATES`; killed: it was running, and no process has it now
    step    of `steps` if it trains
    loss    last logged loss
    left    estimated seconds that its remaining steps take, from its last logged steps
    reason  why it is not running or done, and what to do
    """

    folder: Path
    state: str
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    left: float | None = None
    reason: str = ""


def status(folders: Sequence[Path]) -> list[RunState]:
    """Print the runs in these folders as a table, and return them. DataError if there is none."""
    runs: list[RunState] = []
    for folder in folders:
        found = [state_of(run) for run in _run_folders(folder)]
        if not found:
            problem = "contains no run" if folder.is_dir() else "no such folder"
            raise DataError(folder, problem, "give a run folder, or the out_dir of a comparison")
        print(f"{folder}: {_counts(found)}{_comparison(folder)}")
        runs += found
        shown = [run for run in found if run.state != "done"]
        if len(found) - len(shown) <= MOST_DONE:
            shown = found
        if shown:
            console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
            console.print(_table(folder, sorted(shown, key=lambda run: STATES.index(run.state))))
    return runs


def state_of(folder: Path) -> RunState:
    """The state of the run in a folder; errors of its files are its reason."""
    try:
        status, train = read_record(folder / "status.json"), _train_fields(folder / "config.yaml")
    except DataError as error:
        return RunState(folder, "damaged", reason=str(error))
    rows, steps = metric_rows(folder), train.get("steps")
    logged = int(rows[-1].get("step", 0)) if rows else 0
    step = None if steps is None else max(logged, int(status.get("step") or 0))
    loss = rows[-1].get("loss") if rows else None
    state, reason = str(status.get("state", "")), str(status.get("reason") or "").split("\n")[0]
    if state == "done":
        return RunState(folder, state, step, steps, loss)
    if is_locked(folder):
        return RunState(folder, "running", step, steps, loss, _left(rows, step, train))
    if state == "running":
        state = "killed"
        reason = f"pid {status.get('pid')} on {status.get('host')} is gone; the same command resumes"
    elif not state:
        log = folder / LOG
        state, reason = ("failed", last_line(log)) if log.is_file() else ("not started", "")
    elif state == "stopped":
        reason = f"{reason}; the same command resumes"
    return RunState(folder, state if state in STATES else "damaged", step, steps, loss, reason=reason)


def _run_folders(folder: Path) -> list[Path]:
    """Folders of runs in a folder, or itself, in alphabetical order."""
    markers = {"config.yaml", "status.json", LOG}
    return sorted({file.parent for name in markers for file in folder.rglob(name)})


def _train_fields(file: Path) -> dict[str, Any]:
    """`train` of a configuration; {} if the run does not train. DataError if the file is damaged."""
    try:
        config = read_yaml(file) if file.is_file() else {}
        return dict(config.get("train") or {})
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        raise DataError(file, "is damaged", "delete its folder to run it again") from None


def _left(rows: Sequence[dict[str, float]], step: int | None, train: dict[str, Any]) -> float | None:
    """Estimated seconds of the remaining steps; None if unknown."""
    rates = [row["samples_per_s"] for row in rows[-RECENT_ROWS:] if row.get("samples_per_s", 0) > 0]
    if step is None or not rates:
        return None
    return (train["steps"] - step) * train.get("samples_per_step", 1) / median(rates)


def _comparison(folder: Path) -> str:
    """Whether a comparison runs in this folder; empty if it has none."""
    if not (folder / LOCK).exists():
        return ""
    return "; a comparison is running" if is_taken(folder / LOCK) else "; no comparison is running"


def _counts(runs: Sequence[RunState]) -> str:
    of = Counter(run.state for run in runs)
    return ", ".join(f"{of[state]} {state}" for state in STATES if of[state])


def _table(folder: Path, runs: Sequence[RunState]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("run", "state", "step", "loss", "time left"):
        table.add_column(title, no_wrap=True)
    table.add_column("reason", overflow="fold")
    for run in runs:
        name = str(run.folder.relative_to(folder)) if run.folder != folder else "."
        step = "" if run.steps is None else f"{run.step} of {run.steps}"
        loss = "" if run.loss is None else f"{run.loss:.4f}"
        table.add_row(name, run.state, step, loss, "" if run.left is None else duration(run.left), run.reason)
    return table
