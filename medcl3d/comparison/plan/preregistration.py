"""Preregistration: the planned tests, written before the runs, so that a report can name later changes."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from medcl3d.comparison.plan.cells import endpoint_cells
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.runs import Run
from medcl3d.config.plain import Difference, differences, listed
from medcl3d.evaluation.statistics.intervals import MIN_REPLICATES_FOR_TEST
from medcl3d.io.atomic import write_text

PREREGISTRATION = "preregistration.jsonl"
TIME = "%Y-%m-%dT%H:%M:%S%z"
FORMER = "declared.jsonl"  # name of the file in version 0.1; it is read and kept
CHANGED = "the preregistered tests were changed after results existed (see the notes)"
MARGIN_CHANGED = "the margin was changed after results existed (see the notes)"


@dataclass(frozen=True)
class PreregistrationCheck:
    """Comparison of the current tests with the preregistered ones.

    note   a note for readers, "" if everything was preregistered before the first result
    kept   no change was made after results that could have motivated it; otherwise nothing is tested
    margin_kept  the same for the margin; otherwise no arm is called equivalent, and the other tests remain
                 valid
    """

    note: str
    kept: bool
    margin_kept: bool = True


def tested_fields(config: CompareConfig) -> dict[str, Any]:
    """All fields that determine the tests."""
    # Newer fields are written only if they are used, so that older files stay unchanged.
    margin = {} if config.margin is None else {"margin": config.margin}
    order = [_endpoint(one) for one in config.later]
    return {
        **_endpoint(config),
        **({"next_endpoints": order} if order else {}),
        **margin,
        "reference": config.reference,
        "family": sorted(config.tested_arms),
        "stage": config.stage,
        "first_seed": config.first_seed,
        "replicates": config.replicates,
        **({"folds": config.folds} if config.folds else {}),
    }


def _endpoint(config: CompareConfig) -> dict[str, Any]:
    cells = [dict(cell) for cell in endpoint_cells(config)]
    return {"metric": config.metric, "higher": config.higher, "endpoint": cells}


def preregister(config: CompareConfig, finished: int, complete: int) -> None:
    """Append the current tests to the comparison's declarations if they differ from the last one.

    finished, complete  number of finished measurements and of complete replicates now: results that may have
                        been seen

    Measurements of an earlier plan in the same folder count as finished, and so do those of its last report
    that were deleted: they may have been seen too.
    """
    path, what = config.report_dir / PREREGISTRATION, tested_fields(config)
    before = preregistrations(path)
    if before and before[-1]["what"] == what:
        return
    now = time.strftime(TIME)
    measured = config.out_dir / config.measured_by[0]
    rows = config.report_dir / "results.csv"
    reported = rows.read_bytes().count(b"\n") - 1 if rows.is_file() else 0
    finished = max(finished, reported, sum(1 for _ in measured.rglob("results.json")))
    row = {"time": now, "finished": finished, "complete": complete, "what": what}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(one) + "\n" for one in [*before, row]))


def preregistrations(path: Path) -> list[dict[str, Any]]:
    """The declarations of a file in their order, after those of a `declared.jsonl` beside it that it lacks.

    Empty if both are absent. Damaged rows are skipped.
    """
    rows, former = _rows(path), _rows(path.with_name(FORMER))
    return [*(row for row in former if row not in rows), *rows]


def _rows(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            counts = {key: int(row[key]) for key in ("finished", "complete")}
            found.append({**row, **counts, "what": dict(row["what"])})
        except (ValueError, KeyError, TypeError):
            continue
    return found


def file_beside(runs: Sequence[Run], config: CompareConfig) -> Path:
    """The declarations file of these runs: beside them, also if they were moved."""
    return files_beside(runs, config)[0]


def files_beside(runs: Sequence[Run], config: CompareConfig) -> list[Path]:
    """The declarations files of these runs, if they were moved from several folders."""
    out_dirs = dict.fromkeys(run.moved_to for run in runs if run.moved_to is not None)
    inside = config.report_dir.relative_to(config.out_dir) / PREREGISTRATION
    return [out_dir / inside for out_dir in out_dirs or [config.out_dir]]


def declarations_of(runs: Sequence[Run], config: CompareConfig) -> list[dict[str, Any]]:
    """The declarations of these runs, each once, those of several folders in the order of their time."""
    files, rows = files_beside(runs, config), list[dict[str, Any]]()
    for file in files:
        rows += [row for row in preregistrations(file) if row not in rows]
    return rows if len(files) == 1 else sorted(rows, key=_time_of)


def _time_of(row: Mapping[str, Any]) -> float:
    try:
        return datetime.strptime(str(row.get("time")), TIME).timestamp()
    except ValueError:
        return 0.0


def check_preregistration(
    config: CompareConfig,
    rows: Sequence[dict[str, Any]],
    measured: Collection[str],
    repeated: Collection[int] = (),
) -> PreregistrationCheck:
    """Compare the current tests with the declarations in the file.

    measured: the metrics that the runs have; repeated: the replicates of which results existed before more
    training steps were planned.

    A declaration of a metric that no run has is ignored as a mistake, since none of its results can have been
    seen. A screening tests nothing. More replicates are not a change while too few were complete for a test:
    a pilot decides whether the rest is worth its time.
    """
    if config.stage == "screen":
        return PreregistrationCheck("", True)
    if len(repeated) >= MIN_REPLICATES_FOR_TEST:
        note = f"No test: train.steps was raised after {len(repeated)} replicates were measured."
        return PreregistrationCheck(note, False)
    rows = [row for row in rows if row["what"].get("metric") in measured]
    if not rows:
        note = "The tests were not preregistered: preregistration.jsonl does not exist."
        return PreregistrationCheck(note, True)
    what = tested_fields(config)
    first = rows[0]
    for row in rows:
        if row["finished"] == 0:  # no result existed: the later declaration counts
            first = row
    changes = [change for change in differences(first["what"], what) if not _is_pilots(change, first, rows)]
    margin = [change for change in changes if change.field == "margin"]
    if margin and len(changes) == len(margin):
        changed = f"{listed(margin)} was changed after results existed"
        note = f"No arm is called equivalent: {changed}; other tests remain valid."
        return PreregistrationCheck(note, True, margin_kept=False)
    if changes:
        when = next((row for row in rows if row["what"] == what), None)
        seen = "after the runs" if when is None else f"when {_measurements(when['finished'])} finished"
        note = f"No test: {listed(changes)} was changed {seen}."
        return PreregistrationCheck(note, False, margin_kept=not margin)
    already = f"{_measurements(first['finished'])} already finished"
    note = f"The tests were preregistered when {already}." if first["finished"] else ""
    return PreregistrationCheck(note, True)


def _measurements(count: int) -> str:
    return f"{count} measurement{' was' if count == 1 else 's were'}"


def _is_pilots(change: Difference, first: dict[str, Any], rows: Sequence[dict[str, Any]]) -> bool:
    """Whether a change of the number of replicates only added some, each time before a test was possible."""
    counted = rows[rows.index(first) :]
    numbers = [row["what"]["replicates"] for row in counted]
    changed = [
        (number > before, row["complete"])
        for row, before, number in zip(counted[1:], numbers, numbers[1:], strict=False)
        if number != before
    ]
    return (
        change.field == "replicates"
        and change.new == numbers[-1] != numbers[0]
        and all(is_more and complete < MIN_REPLICATES_FOR_TEST for is_more, complete in changed)
    )
