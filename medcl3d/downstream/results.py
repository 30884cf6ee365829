"""Results of runs that measure something: results.json, and the report of their metrics."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from medcl3d.config.plain import plain
from medcl3d.distributed.collectives import rank, say
from medcl3d.downstream.few_cases import few_case_notes
from medcl3d.downstream.task import Evaluation
from medcl3d.downstream.transfer import Transferred
from medcl3d.downstream.unlike_pretraining import unlike_pretraining
from medcl3d.evaluation.statistics.intervals import Interval
from medcl3d.io.atomic import write_json
from medcl3d.store.store import Store
from medcl3d.training.run_folder import RunFolder

SCHEMA = 1
INIT = "init.json"
"""File of a run folder: what is known about weights of another project from which the run started."""


def finish(run: RunFolder, found: Evaluation, split: dict[str, list[str]], config: Any, step: int) -> None:
    """Write results.json, report the metrics and notes, and mark the run as done.

    split: the `labelled` and `test` patients
    """
    write_json(run.path / "results.json", results_of(found, split, plain(config)))
    say(metric_lines(found.metrics))
    for line in few_case_notes(found.few, len(split["labelled"])):
        say(f"  note: {line}")
    run.status("done", step)


def record_init(run: RunFolder, transferred: Transferred | None, store: Store) -> None:
    """Write what is known about the weights of another project, if the run starts from such."""
    if transferred is not None and "layout" in transferred.sidecar and rank() == 0:
        differences = unlike_pretraining(store, transferred.sidecar)
        write_json(run.path / INIT, {**transferred.sidecar, "differences": differences})


def results_of(found: Evaluation, split: dict[str, list[str]], config: Any) -> dict[str, Any]:
    """The content of a `results.json`. Intervals: 95%, bootstrap over test patients; None if undefined."""

    def number(value: float) -> float | None:
        return value if isfinite(value) else None

    metrics = {
        name: {"mean": m.mean, "low": number(m.low), "high": number(m.high), "n": m.n}
        for name, m in found.metrics.items()
    }
    few = {"few_training_cases": found.few} if found.few else {}
    return {
        "schema": SCHEMA,
        "metrics": metrics,
        "intervals": "95%, bootstrap over test patients",
        **few,
        "cases": found.cases,
        "split": split,
        "config": config,
    }


def metric_lines(metrics: Mapping[str, Interval]) -> str:
    """Metrics as text, one line each."""
    return "\n".join(
        f"  {name}: {m.mean:.4f} [{m.low:.4f}, {m.high:.4f}], {m.n} patients" for name, m in metrics.items()
    )
