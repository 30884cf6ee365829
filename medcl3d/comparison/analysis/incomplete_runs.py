"""Incomplete runs of a plan: failed, stopped or not started, with reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.runs import Run, plan
from medcl3d.comparison.run.execute import last_line
from medcl3d.comparison.run.finished_runs import begun_pretrainings
from medcl3d.comparison.run.launch import LOG
from medcl3d.comparison.run.lock import is_locked
from medcl3d.io.json_file import read_record

ORDER = ("failed", "stopped", "running", "not started", "not found")


@dataclass(frozen=True)
class IncompleteRun:
    """A run, its state (one of `ORDER`), and the reason."""

    run: Run
    state: str
    reason: str


def incomplete_runs(runs: Sequence[Run], config: CompareConfig) -> list[IncompleteRun]:
    """Every run that is not done, failed ones first; for moved runs also the measurements that are missing.

    A deleted pretraining is left out if no incomplete run needs it.
    """
    begun = begun_pretrainings(runs)
    waiting = [one for run in runs if (one := _state(run, begun)) is not None]
    needed = {one.run.needs.resolve() for one in waiting if one.run.needs is not None}
    found = [
        one
        for one in waiting
        if one.run.measures or one.run.folder.resolve() in needed or one.state != "not started"
    ]
    if any(run.moved_to for run in runs):
        given = set(map(str, runs))
        absent = [run for run in plan(config) if run.measures and str(run) not in given]
        found += [IncompleteRun(run, "not found", "no folder of --from holds it") for run in absent]
    return sorted(found, key=lambda one: ORDER.index(one.state))


def _state(run: Run, begun: Collection[Path]) -> IncompleteRun | None:
    status, log = read_record(run.folder / "status.json"), run.folder / LOG
    state, reason = status.get("state"), status.get("reason")
    if state == "done":
        pretraining = run.needs if run.measures else run.folder
        if pretraining is None or pretraining.resolve() not in begun:
            return None
        which = "its pretraining" if run.measures else "it"
        reason = f"{which} does not have all planned steps; the same command continues it"
        return IncompleteRun(run, "not started", reason)
    if state == "stopped":
        return IncompleteRun(run, "stopped", f"at step {status.get('step', 0)}; the same command resumes it")
    if not run.moved_to and is_locked(run.folder):
        return IncompleteRun(run, "running", "a process is executing it")
    if state is None and not log.is_file():
        return IncompleteRun(run, "not started", _waits(run))
    if state == "failed" and reason:
        return IncompleteRun(run, "failed", reason)
    # A run that was killed, as for its memory, recorded no reason: its log has the last output.
    last = last_line(log)
    if state == "running" and not last.startswith("medcl3d: "):
        step = status.get("step", 0)
        last = f"ended without a message, as a killed run does, after step {step}; last output: {last}"
    return IncompleteRun(run, "failed", last)


def _waits(run: Run) -> str:
    done = run.needs is None or read_record(run.needs / "status.json").get("state") == "done"
    return "the same command runs it" if done else "its pretraining is not done"


def count(found: Sequence[IncompleteRun]) -> str:
    """``2 failed, 1 not started``; empty if all are done."""
    of = Counter(one.state for one in found)
    return ", ".join(f"{of[state]} {state}" for state in ORDER if of[state])
