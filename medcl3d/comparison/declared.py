"""What a comparison said that it would test, written down before its runs, so that a report can tell what was changed after them."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcl3d.comparison.config import CompareConfig
from medcl3d.comparison.plan import Run, cells, family_of, in_endpoint
from medcl3d.config import differences
from medcl3d.data.atomic import write_text
from medcl3d.evaluation.statistics import MIN_REPLICATES_FOR_TEST

DECLARED = "declared.jsonl"
CHANGED = "what is tested was changed when results were there (see the notes)"
MARGIN_CHANGED = "the margin was changed when results were there (see the notes)"


@dataclass(frozen=True)
class Standing:
    """How what is tested now stands to what was declared.

    note   what a reader must know, "" where all was declared before the first result
    kept   nothing was changed after results were there that could have asked for it; else there is no test
    margin_kept  neither was the margin; else no arm is called equivalent, and the other tests stand
    """

    note: str
    kept: bool
    margin_kept: bool = True


def tested_fields(config: CompareConfig) -> dict[str, Any]:
    """All that decides which number is tested, against which."""
    # What came later than the first files is written only if it is used, so that those files stay as they are.
    margin = {} if config.margin is None else {"margin": config.margin}
    order = [{"metric": one.metric, "higher": one.higher, "endpoint": _endpoint(one)} for one in config.later]
    return {
        "metric": config.metric,
        "higher": config.higher,
        "endpoint": _endpoint(config),
        **({"next_endpoints": order} if order else {}),
        **margin,
        "reference": config.reference,
        "family": sorted(family_of(config)),
        "stage": config.stage,
        "first_seed": config.first_seed,
        "replicates": config.replicates,
    }


def _endpoint(config: CompareConfig) -> list[dict[str, Any]]:
    return [dict(cell) for cell in cells(config) if in_endpoint(cell, config)]


def declare(config: CompareConfig, finished: int, complete: int) -> None:
    """Add what is tested to the comparison's declarations, where it differs from the last one.

    finished, complete  measurements that are done now, and replicates in which all are: what could have been seen
    """
    path, what = config.report_dir / DECLARED, tested_fields(config)
    before = declarations(path)
    if before and before[-1]["what"] == what:
        return
    row = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "finished": finished, "complete": complete, "what": what}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(one) + "\n" for one in [*before, row]))


def declarations(path: Path) -> list[dict[str, Any]]:
    """The declarations of a file in their order; none where it is absent, rows that were spoilt are left out."""
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            found.append({**row, "finished": int(row["finished"]), "complete": int(row["complete"]), "what": dict(row["what"])})
        except (ValueError, KeyError, TypeError):
            continue
    return found


def file_beside(runs: Sequence[Run], config: CompareConfig) -> Path:
    """Where the declarations of these runs lie: beside them, also where they were moved."""
    out_dir = next((run.elsewhere for run in runs if run.elsewhere is not None), config.out_dir)
    return out_dir / config.report_dir.relative_to(config.out_dir) / DECLARED


def standing(config: CompareConfig, rows: Sequence[dict[str, Any]], measured: Collection[str]) -> Standing:
    """Hold what is tested now against the declarations that were made; measured: the metrics that the runs have.

    What named a metric that no run has was a slip of the pen: nothing could have been seen of it, and the next word counts as the first.
    A screening tests nothing. More replicates are no change while too few were complete for a test: a pilot decides whether the
    rest is worth its time.
    """
    if config.stage == "screen":
        return Standing("", True)
    rows = [row for row in rows if row["what"].get("metric") in measured]
    if not rows:
        return Standing("What is tested was not written down before the runs, as far as can be told: there is no declared.jsonl.", True)
    what = tested_fields(config)
    first, last = rows[0], rows[-1]
    for row in rows:
        if row["finished"] == 0:  # nothing could have been seen yet: the later word counts
            first = row
    lines = [line for line in differences(first["what"], what) if not _is_pilots(line, first, rows)]
    margin = [line for line in lines if line.startswith("margin:")]
    if margin and len(lines) == len(margin):
        note = f"No arm is called equivalent: {'; '.join(margin)} was changed after results were there, and other tests stand."
        return Standing(note, True, margin_kept=False)
    if lines:
        when = next((row for row in rows if row["what"] == what), last)
        seen = f"when {_measurements(when['finished'])} finished" if when["what"] == what else "after the runs"
        return Standing(f"There is no test: {'; '.join(lines)} was changed {seen}.", False, margin_kept=not margin)
    if first["finished"]:
        return Standing(f"What is tested was first written down when {_measurements(first['finished'])} finished.", True)
    return Standing("", True)


def _measurements(count: int) -> str:
    return f"{count} measurement{' was' if count == 1 else 's were'}"


def _is_pilots(line: str, first: dict[str, Any], rows: Sequence[dict[str, Any]]) -> bool:
    """A change of the number of replicates that no test could have asked for."""
    changes = [row for row in rows if row["what"]["replicates"] != first["what"]["replicates"]]
    return line.startswith("replicates:") and bool(changes) and changes[0]["complete"] < MIN_REPLICATES_FOR_TEST
