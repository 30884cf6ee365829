"""Runs a plan: each run is a command of its own, skipped when done, resumed when stopped, reported when it failed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from medcl3d.comparison.plan import Run
from medcl3d.config import differences
from medcl3d.data.atomic import write_json
from medcl3d.errors import ConfigError, Stopped
from medcl3d.training.logs import FREE_FIELDS

LOG = "compare.log"
INPUTS = "inputs.json"
POLL_SECONDS = 0.2
GRACE_SECONDS = 120.0
"""How long a run that is asked to stop may take to save its state."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `kept` was done before; `failed` has a reason."""

    run: Run
    state: Literal["done", "kept", "failed"]
    seconds: float = 0.0
    reason: str = ""


def is_done(run: Run) -> bool:
    """The run's folder holds this very run, finished.

    ConfigError where the folder holds another run, or one that started from another encoder.
    """
    config_file = run.folder / "config.yaml"
    if not config_file.is_file():
        return False
    found = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    free = (*FREE_FIELDS, *(("out_dir:", "init:") if run.elsewhere else ()))
    lines = [line for line in differences(found, run.planned) if not line.startswith(free)]
    if lines:
        shown = "; ".join([*lines[:5], *(["..."] if len(lines) > 5 else [])])
        raise ConfigError(f"{run.folder}: holds another run: {shown}. Delete the folder to run anew, or choose another out_dir")
    done = read_json(run.folder / "status.json").get("state") == "done"
    if done and run.needs is not None and not (run.elsewhere and encoder_hash(run.needs) is None):
        started_from = read_json(run.folder / INPUTS).get("encoder_sha256")
        if started_from is None or started_from != encoder_hash(run.needs):
            raise ConfigError(f"{run.folder}: started from another encoder than {run.needs} holds now. Delete the folder to fine-tune anew")
    return done


def encoder_hash(folder: Path) -> str | None:
    """SHA-256 of the encoder that a pretraining left, None where there is none."""
    path = folder / "encoder.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty where the file is absent."""
    return json.loads(path.read_text()) if path.is_file() else {}


def last_line(path: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()] if path.is_file() else []
    return next((line for line in reversed(lines) if line), "it wrote nothing")


def step_of(run: Run) -> int:
    """The last step that a run logged."""
    path = run.folder / "metrics.jsonl"
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        complete = [line for line in file.read().split(b"\n")[:-1] if line.startswith(b"{") and line.endswith(b"}")]
    return int(json.loads(complete[-1]).get("step", 0)) if complete else 0


def command_of(run: Run) -> list[str]:
    """The command line of a run, as a person would type it after `python`."""
    return ["-m", "medcl3d", run.command, str(run.config), *run.overrides]


@dataclass
class _Child:
    """A run that is going on."""

    run: Run
    process: subprocess.Popen[bytes]
    started: float


def _start(run: Run, jobs: int) -> _Child:
    run.folder.mkdir(parents=True, exist_ok=True)
    if run.needs is not None:
        write_json(run.folder / INPUTS, {"encoder_sha256": encoder_hash(run.needs)})
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}
    with (run.folder / LOG).open("ab") as log:
        # A session of its own: Ctrl-C reaches only us, and we ask each run once to save and stop.
        process = subprocess.Popen(
            [sys.executable, *command_of(run)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path, **threads},
            start_new_session=True,
        )
    return _Child(run, process, time.monotonic())


def _stop(children: Sequence[_Child]) -> None:
    """Ask all to save and stop; kill what has not after the grace time, or at a second Ctrl-C."""
    for child in children:
        child.process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    try:
        for child in children:
            child.process.wait(max(0.1, deadline - time.monotonic()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        for child in children:
            child.process.kill()
    for child in children:
        child.process.wait()


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM (a cluster's time limit) sets, so that no run starts unseen; a second one interrupts."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(_number: int, _frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _outcome(child: _Child) -> Outcome | None:
    code = child.process.poll()
    if code is None:
        return None
    seconds = time.monotonic() - child.started
    try:
        if code == 0 and is_done(child.run):
            return Outcome(child.run, "done", seconds)
    except ConfigError as error:
        return Outcome(child.run, "failed", seconds, str(error))
    what = f"exit {code}" if code > 0 else f"killed by signal {-code}" if code < 0 else "exit 0, but its status.json does not say done"
    return Outcome(child.run, "failed", seconds, f"{what}: {last_line(child.run.folder / LOG)}")


def execute(runs: Sequence[Run], jobs: int, console: Console) -> list[Outcome]:
    """Run what is not done yet, `jobs` at once; a run that fails does not stop the others.

    ConfigError before anything starts where a folder holds another run; Stopped on Ctrl-C or SIGTERM.
    """
    done = {run.folder for run in runs if is_done(run)}
    outcomes = [Outcome(run, "kept") for run in runs if run.folder in done]
    waiting = [run for run in runs if run.folder not in done]
    over = {folder: "done" for folder in done}
    children: list[_Child] = []
    with _stop_signals() as asked, _progress(console) as progress:
        task = progress.add_task("runs", total=sum(run.size for run in waiting))
        try:
            while waiting or children:
                for run in _ready(waiting, over)[: jobs - len(children)]:
                    waiting.remove(run)
                    children.append(_start(run, jobs))
                if asked.wait(POLL_SECONDS if children else 0):
                    raise Stopped(f"stopped with {len(outcomes)} of {len(runs)} runs over; the same command goes on from here")
                for child, outcome in [(c, o) for c in children if (o := _outcome(c)) is not None]:
                    children.remove(child)
                    _finish(outcome, outcomes, over, progress, len(runs))
                for run in [r for r in waiting if r.needs is not None and over.get(r.needs) == "failed"]:
                    waiting.remove(run)
                    _finish(Outcome(run, "failed", 0.0, "its pretraining failed"), outcomes, over, progress, len(runs))
                _advance(progress, task, [c.run for c in children], [o.run for o in outcomes if o.state != "kept"])
        finally:
            _stop(children)
    return outcomes


def _ready(waiting: Sequence[Run], over: dict[Path, str]) -> list[Run]:
    return [run for run in waiting if run.needs is None or over.get(run.needs) == "done"]


def _finish(outcome: Outcome, outcomes: list[Outcome], over: dict[Path, str], progress: Progress, total: int) -> None:
    outcomes.append(outcome)
    over[outcome.run.folder] = outcome.state
    line = f"{len(outcomes)}/{total} {outcome.state} in {outcome.seconds:.0f} s: {outcome.run}"
    progress.console.print(line + (f"\n    {outcome.reason}" if outcome.reason else ""), markup=False, highlight=False, soft_wrap=True)


def _advance(progress: Progress, task: TaskID, going: Sequence[Run], ended: Sequence[Run]) -> None:
    part = sum(run.size * step_of(run) // max(1, run.steps) for run in going)
    progress.update(task, completed=part + sum(run.size for run in ended), description=f"{len(going)} running")


def _progress(console: Console) -> Progress:
    count = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("samples,"))
    times = (TimeElapsedColumn(), TextColumn("gone,"), TimeRemainingColumn(), TextColumn("left"))
    return Progress(*count, *times, console=console, disable=not console.is_terminal)
