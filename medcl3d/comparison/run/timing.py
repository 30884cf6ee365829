"""Time estimates of a plan, based only on its own runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medcl3d.comparison.plan.runs import Run
from medcl3d.comparison.run.launch import COST
from medcl3d.io.json_file import read_record
from medcl3d.io.progress import duration

WRONG_BY, WRONG_FROM = 1.25, 60.0
"""Limits beyond which a new estimate is reported: as a ratio to the old one, and in seconds."""


def metric_rows(folder: Path) -> list[dict[str, float]]:
    """The complete rows of a run's metrics.jsonl; a running run or a full disk leaves incomplete ones."""
    path = folder / "metrics.jsonl"
    rows: list[dict[str, float]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows += [row] if isinstance(row, dict) else []
    return rows


def samples_per_s(run: Run) -> float | None:
    """The median rate of a run's logged steps, without the first of several (warm-up); None without any."""
    rates = [row["samples_per_s"] for row in metric_rows(run.folder) if row.get("samples_per_s", 0) > 0]
    return float(np.median(rates[1:] or rates)) if rates else None


def seconds_per_sample(runs: Sequence[Run], done: Sequence[Run]) -> float | None:
    """Seconds per sample of one command's runs: of finished runs if any, otherwise of logged steps."""
    costs = [read_record(run.folder / COST).get("seconds", 0.0) / run.size for run in done]
    known = [cost for cost in costs if cost > 0]
    if known:
        return float(np.mean(known))
    rates = [rate for run in runs if (rate := samples_per_s(run)) is not None]
    return 1 / float(np.median(rates)) if rates else None


def seconds_of_each(command: str, runs: Sequence[Run], done: Sequence[Run]) -> dict[str, float] | None:
    """Seconds per sample of every pretraining or arm of a command; None if nothing was timed.

    One may take ten times as long as another, as MAE with its decoder compared with a contrast of pooled
    vectors, so each is timed by its own runs, or by all runs as long as it has none.
    """
    mine = [run for run in runs if run.command == command]
    finished = {run.folder for run in done}
    of_all = seconds_per_sample(mine, [run for run in mine if run.folder in finished])
    if of_all is None:
        return None
    found = {}
    for name in dict.fromkeys(run.name for run in mine):
        own = [run for run in mine if run.name == name]
        found[name] = seconds_per_sample(own, [run for run in own if run.folder in finished]) or of_all
    return found


def seconds_to_go(command: str, runs: Sequence[Run], done: Sequence[Run]) -> float | None:
    """Seconds that the remaining runs of a command take one after the other; None if nothing was timed."""
    each = seconds_of_each(command, runs, done)
    finished = {run.folder for run in done}
    waiting = [run for run in runs if run.command == command and run.folder not in finished]
    return None if each is None else _seconds(each, waiting)


def _seconds(each: Mapping[str, float], runs: Sequence[Run]) -> float:
    return sum(each[run.name] * run.size for run in runs)


class TimeEstimates:
    """Time estimates: after the first timed steps, after the first finished run, and if one was wrong."""

    def __init__(self) -> None:
        # Command -> runs done at the last check, reported seconds of all.
        self._reported: dict[str, tuple[int, float]] = {}

    def lines(self, runs: Sequence[Run], done: Sequence[Run], left: Sequence[Run], at_once: int) -> list[str]:
        """New estimates, one line per command; left: running and waiting runs."""
        found = []
        for command in dict.fromkeys(run.command for run in left):
            num_done = sum(run.command == command for run in done)
            done_then, then = self._reported.get(command, (-1, 0.0))
            each = None if done_then == num_done else seconds_of_each(command, runs, done)
            if each is None:
                continue
            whole = _seconds(each, [run for run in runs if run.command == command])
            wrong = not 1 / WRONG_BY < whole / max(then, 1e-9) < WRONG_BY and abs(whole - then) > WRONG_FROM
            if done_then <= 0 or wrong:
                mine = [run for run in left if run.command == command]
                known = "estimated from finished runs" if num_done else "estimated from steps only"
                time = duration(_seconds(each, mine) / min(at_once, len(mine)))
                runs_left = f"{len(mine)} run{'s' if len(mine) > 1 else ''}"
                found.append(f"{command}: about {time} for {runs_left}, {known}")
                then = whole
            self._reported[command] = num_done, then
        return found
