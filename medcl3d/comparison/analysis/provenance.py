"""What finished runs of a comparison should share: data, software, device and numerical precision."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medcl3d.comparison.plan.runs import Run
from medcl3d.comparison.run.finished_runs import finished
from medcl3d.core.errors import DataError
from medcl3d.distributed.collectives import device_of_rank
from medcl3d.distributed.precision import precision_used
from medcl3d.io.json_file import read_record
from medcl3d.store.fingerprints import hashed_parts
from medcl3d.training.run_record import EARLIER

RECORDED = {
    "versions": "package versions",
    "python": "versions of Python",
    "commit": "commits of medcl3d",
    "device": "devices",
    "precision": "numerical precisions",
}
"""Key of provenance.json -> its values in words."""


def check_provenance(runs: Sequence[Run]) -> list[str]:
    """Sentences on provenance that finished runs should share but do not: software, device, columns of the
    manifest.

    DataError if runs of one command that read one folder found different data in it. Other fields of `data`
    may differ: they select from a folder's data and do not change it.
    """
    done = finished(runs)
    found = [read_record(run.folder / "provenance.json") for run in done]
    notes: list[str] = []
    first: dict[tuple[str, str, str], tuple[Any, Path]] = {}
    columns: dict[tuple[str, str], list[set[str]]] = {}
    for run, provenance in zip(done, found, strict=True):
        same = run.command, str(run.planned.get("data", {}).get("root"))
        parts = hashed_parts(provenance)
        others = {
            words: first.setdefault((*same, words), (part, run.folder)) for words, part in parts.items()
        }
        differ = [words for words, part in parts.items() if others[words][0] != part]
        if differ:
            raise DataError(
                problem=f"{others[differ[0]][1]} and {run.folder} read different data: {', '.join(differ)}",
                remedy="prepare the data once and run both again",
            )
        if "manifest" in provenance:
            columns.setdefault(same, []).append(set(provenance["manifest"]))
    for (command, root), sets in columns.items():
        if more := sorted(set[str].union(*sets) - set[str].intersection(*sets)):
            found_by = f"Some runs of {command} found columns in {root} that others did not find"
            notes.append(f"{found_by}, and did not use: {', '.join(more)}.")
    # A run that was resumed elsewhere has several environments.
    environments = [[one, *one.get(EARLIER, ())] for one in found]
    every = [one for of_run in environments for one in of_run]
    for key, words in RECORDED.items():
        kinds = {json.dumps(one[key], sort_keys=True) for one in every if key in one}
        if len(kinds) > 1:
            notes.append(f"The runs used {len(kinds)} different {words}; see each run's provenance.json.")
    notes += _mixed_precisions(done, found)
    steps = {tuple(change) for provenance in found for change in provenance.get("extended", ())}
    if steps:
        changes = ", ".join(f"{old} -> {new}" for old, new in sorted(steps))
        notes.append(
            f"Finished runs were continued (train.steps {changes}): their first steps followed the learning "
            "rates of the shorter run."
        )
    if dirty := sum(any(one.get("dirty") for one in of_run) for of_run in environments):
        notes.append(f"{dirty} of {len(found)} runs used a checkout with uncommitted changes.")
    return notes


def _mixed_precisions(runs: Sequence[Run], provenances: Iterable[Mapping[str, Any]]) -> list[str]:
    """A sentence on replicates whose arms were trained or measured in different precisions."""
    used: dict[tuple[str, int], set[str]] = {}
    for run, provenance in zip(runs, provenances, strict=True):
        if "precision" in provenance:
            used.setdefault((run.command, run.seed), set()).add(provenance["precision"])
    mixed = sorted({seed for (_, seed), precisions in used.items() if len(precisions) > 1})
    if not mixed:
        return []
    which = f"replicate {mixed[0]}" if len(mixed) == 1 else f"replicates {', '.join(map(str, mixed))}"
    return [f"In {which} the arms do not share a numerical precision: their differences contain its effect."]


def other_precision(done: Sequence[Run], to_do: Sequence[Run]) -> list[str]:
    """A warning for each command that would use another precision than finished runs of an arm."""
    used: dict[tuple[str, str], set[str]] = {}
    for run in done:
        if found := read_record(run.folder / "provenance.json").get("precision"):
            used.setdefault((run.command, run.name), set()).add(found)
    changes = {
        (run.command, before, now): None
        for run in to_do
        for now in [_precision_here(run)]
        for before in sorted(used.get((run.command, run.name), {now}) - {now})
    }
    return [
        f"warning: {command}: finished runs used {before}, and this device would use {now}: continue on a "
        "device like the first, or set the precision"
        for command, before, now in changes
    ]


def _precision_here(run: Run) -> str:
    return precision_used(run.planned.get("train", run.planned).get("precision", "auto"), device_of_rank())
