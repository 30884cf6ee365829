"""Execution of a plan: each run is a command, skipped if done, resumed if stopped, reported if it failed."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

from rich.console import Console
from rich.progress import MofNCompleteColumn, TextColumn

from medcl3d.comparison.plan.runs import Run
from medcl3d.comparison.run.finished_runs import is_done, kept_and_waiting, set_aside
from medcl3d.comparison.run.launch import LOG, Child
from medcl3d.comparison.run.signals import stop_event
from medcl3d.comparison.run.timing import TimeEstimates
from medcl3d.core.errors import Stopped, UserError
from medcl3d.io.progress import progress_bar

POLL_SECONDS = 0.2
GRACE_SECONDS = 120.0
"""Seconds that a run may take to save its state after a stop request."""
STOPPED = 75
MOST_STARTS = 50
"""Starts of one run on a cluster that stops its jobs; more count as a failure."""


class Launcher(Protocol):
    """Starts runs on this machine or on a cluster.

    at_once: number of runs at a time; takes: number of runs that it accepts, including waiting ones.
    """

    at_once: int
    takes: int

    def launch(self, runs: Sequence[Run]) -> list[Child]:
        """Start runs."""

    def busy(self, run: Run) -> bool:
        """Whether a process of another start is still executing this run."""


@dataclass(frozen=True)
class Outcome:
    """The end of a run: `kept` was done before; `failed` has a reason; `stopped` by a cluster can resume."""

    run: Run
    state: Literal["done", "kept", "failed", "stopped"]
    seconds: float = 0.0
    reason: str = ""


def last_line(path: Path) -> str:
    """The last line of a log that is not empty, or that there is none."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()] if path.is_file() else []
    return next((line for line in reversed(lines) if line), "it ended before its first output")


def step_of(run: Run) -> int:
    """The last step that a run logged."""
    path = run.folder / "metrics.jsonl"
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().split(b"\n")[:-1]
    complete = [line for line in lines if line.startswith(b"{") and line.endswith(b"}")]
    return int(json.loads(complete[-1]).get("step", 0)) if complete else 0


def _stop(children: Sequence[Child]) -> None:
    """Signal all to save and stop; kill the remaining ones after the grace time, or at a second Ctrl-C."""
    for child in children:
        child.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    try:
        for child in children:
            child.wait(max(0.1, deadline - time.monotonic()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        for child in children:
            child.kill()
    for child in children:
        child.wait()


def _outcome(run: Run, child: Child) -> Outcome | None:
    code = child.poll()
    if code is None:
        return None
    seconds = time.monotonic() - child.started
    try:
        if code == 0 and is_done(run):
            return Outcome(run, "done", seconds)
    except UserError as error:
        return Outcome(run, "failed", seconds, str(error))
    if code == STOPPED and child.resumable:
        return Outcome(run, "stopped", seconds, "its job was stopped too often")
    what = f"exit {code}" if code > 0 else f"killed by signal {-code}"
    what = what if code else "exit 0, but the state in status.json is not done"
    return Outcome(run, "failed", seconds, f"{what}: {last_line(run.folder / LOG)}")


def execute(
    runs: Sequence[Run],
    launcher: Launcher,
    console: Console,
    accept: Callable[[Run], None] = lambda run: None,
) -> list[Outcome]:
    """Execute the runs that are not done, as many at once as the launcher accepts; a failed run does not stop
    the others.

    accept: validates each finished measurement; its exception ends the execution, since it would refuse every
    other too. A run that another process executes (which outlived the comparison that started it) is waited
    for. ConfigError before anything starts if a folder holds another run; Stopped on Ctrl-C or a signal.
    """
    grid = _Grid(runs, console, accept)
    with (
        stop_event() as stop_requested,
        progress_bar(MofNCompleteColumn(), TextColumn("samples"), console=console) as progress,
    ):
        task = progress.add_task("runs", total=sum(run.size for run in grid.waiting))
        try:
            while grid.waiting or grid.children:
                grid.start(launcher)
                if stop_requested.wait(POLL_SECONDS if grid.children or grid.waiting else 0):
                    raise Stopped(
                        f"stopped after {len(grid.outcomes)} of {len(runs)} runs; the same command resumes"
                    )
                grid.collect()
                grid.report_time(launcher.at_once)
                samples, going = grid.samples(), f"{len(grid.children)} running"
                progress.update(task, completed=samples, description=going)
        finally:
            _stop([child for _, child in grid.children])
    return grid.outcomes


class _Grid:
    """State of a plan's execution: runs that are done, running and waiting."""

    def __init__(self, runs: Sequence[Run], console: Console, accept: Callable[[Run], None]):
        self.runs, self.accept = runs, accept
        self.print = partial(console.print, markup=False, highlight=False, soft_wrap=True)
        kept, self.waiting = kept_and_waiting(runs)
        for run in kept:
            self._accept(run)
        self.outcomes = [Outcome(run, "kept") for run in kept]
        self.over = {run.folder: "done" for run in kept}
        self.children: list[tuple[Run, Child]] = []
        self._starts: Counter[Path] = Counter()
        self._times = TimeEstimates()
        self._waiting_for: set[Path] = set()

    def start(self, launcher: Launcher) -> None:
        """Start runs that are ready, as many as the launcher accepts."""
        ready: list[Run] = []
        for run in [r for r in self.waiting if r.needs is None or self.over.get(r.needs) == "done"]:
            if len(ready) + len(self.children) >= launcher.takes:
                break
            if launcher.busy(run):
                if run.folder not in self._waiting_for:
                    self.print(f"waiting for {run}, which another process is executing")
                    self._waiting_for.add(run.folder)
                continue
            self.waiting.remove(run)
            if run.folder in self._waiting_for and is_done(run):
                self._finish(Outcome(run, "done"))
            else:
                ready.append(run)
        for run in ready:
            set_aside(run)
        if ready:
            self._starts.update(run.folder for run in ready)
            self.children += zip(ready, launcher.launch(ready), strict=True)

    def collect(self) -> None:
        """Collect runs that have ended, and runs that can no longer start."""
        for run, child in list(self.children):
            outcome = _outcome(run, child)
            if outcome is None:
                continue
            self.children.remove((run, child))
            if outcome.state == "stopped" and self._starts[run.folder] < MOST_STARTS:
                self.waiting.append(run)
            else:
                self._finish(replace(outcome, state="failed") if outcome.state == "stopped" else outcome)
        for run in [r for r in self.waiting if r.needs is not None and self.over.get(r.needs) == "failed"]:
            self.waiting.remove(run)
            self._finish(Outcome(run, "failed", 0.0, "its pretraining failed"))

    def report_time(self, at_once: int) -> None:
        """Print estimates of the remaining time of each command's runs, if they are new."""
        left = [*self.waiting, *(run for run, _ in self.children)]
        done = [run for run in self.runs if self.over.get(run.folder) in ("done", "kept")]
        for line in self._times.lines(self.runs, done, left, at_once):
            self.print(line)

    def samples(self) -> int:
        """Samples that the runs of this execution have processed."""
        going = [run for run, _ in self.children]
        ended = sum(outcome.run.size for outcome in self.outcomes if outcome.state != "kept")
        return ended + sum(run.size * step_of(run) // max(1, run.steps) for run in going)

    def _finish(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.over[outcome.run.folder] = outcome.state
        if outcome.state == "done":
            self._accept(outcome.run)
        count, state = f"{len(self.outcomes)}/{len(self.runs)}", outcome.state
        reason = f"\n    {outcome.reason}" if outcome.reason else ""
        self.print(f"{count} {state} in {outcome.seconds:.0f} s: {outcome.run}{reason}")

    def _accept(self, run: Run) -> None:
        if run.measures:
            self.accept(run)
