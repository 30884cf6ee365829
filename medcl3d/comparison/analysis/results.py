"""Results of a comparison's runs: one row per measurement, after checks that they are comparable."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from medcl3d.comparison.analysis.case_values import CaseValues, Key, by_patient, collect
from medcl3d.comparison.plan.cells import cells
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.runs import COMMANDS, COMPARED, Run
from medcl3d.comparison.run.finished_runs import UNPACKED, finished
from medcl3d.config.plain import differences
from medcl3d.core.errors import DataError
from medcl3d.downstream.few_cases import few_cases_over_runs
from medcl3d.io.json_file import read_record

MOST_NAMED = 5


def gather(runs: Sequence[Run], config: CompareConfig) -> pd.DataFrame:
    """One row per finished measurement: arm, varied fields, seed, fold if any, mean of every metric, number
    of cases, folder.

    An undefined mean, as an area under a curve of one class, is NaN. DataError if a result lacks the metric,
    or if runs of one cell, replicate and fold were trained or tested on different patients.
    """
    rows: list[dict[str, Any]] = []
    splits: dict[str, tuple[Path, Any]] = {}
    for run in finished(runs):
        if not run.measures:
            continue
        results = read_record(run.folder / "results.json")
        metrics = means_of(run, results, config.metric)
        for one in config.later:
            means_of(run, results, one.metric)
        _check_split(run, results.get("split"), splits)
        scans = len({case["scan"] for case in results.get("cases", [])})
        fold = {} if run.fold is None else {"fold": run.fold}
        measured = {**metrics, "num_cases": scans, "folder": str(run.folder)}
        rows.append({"arm": run.name, **dict(run.cell), "seed": run.seed, **fold, **measured})
    return pd.DataFrame(rows)


def means_of(run: Run, results: Mapping[str, Any], metric: str) -> dict[str, float]:
    """The mean of every metric of a finished measurement, NaN if undefined. DataError without `metric`."""
    found = results.get("metrics")
    found = found if isinstance(found, dict) else {}
    means = {
        name: value["mean"] for name, value in found.items() if isinstance(value, dict) and "mean" in value
    }
    if metric not in means:
        problem = f"has no number for {metric!r}, which is misspelt or undefined on these test patients"
        remedy = f"set `metric` to one of: {', '.join(means) or 'none'}"
        raise DataError(f"{run.folder}/results.json", problem, remedy)
    finite = {name for name, mean in means.items() if isinstance(mean, int | float) and math.isfinite(mean)}
    return {name: float(mean) if name in finite else math.nan for name, mean in means.items()}


def check_metrics(run: Run, metrics: Sequence[str]) -> None:
    """DataError if a finished measurement lacks one of the metrics."""
    for metric in metrics:
        means_of(run, read_record(run.folder / "results.json"), metric)


def undefined(table: pd.DataFrame, config: CompareConfig) -> list[str]:
    """A sentence on the runs whose metric is undefined, if any: their replicates are excluded."""
    folders = [] if table.empty else table.loc[table[config.metric].isna(), "folder"].tolist()
    if not folders:
        return []
    more = f" and {len(folders) - MOST_NAMED} more" if len(folders) > MOST_NAMED else ""
    where = f"{', '.join(folders[:MOST_NAMED])}{more} (as with a single tested class)"
    return [f"{config.metric} is not defined in {where}, so their replicates are excluded."]


def few_training_cases(runs: Sequence[Run]) -> list[str]:
    """Sentences on classes with few labelled training patients, from the measurements' results."""
    return few_cases_over_runs(
        [read_record(run.folder / "results.json") for run in finished(runs) if run.measures]
    )


def gather_cases(runs: Sequence[Run], config: CompareConfig, replicates: Sequence[int]) -> CaseValues:
    """The metric of every test patient in every finished measurement of these replicates; empty, with the
    reason, for folds.

    A patient who tests one fold trains the others, so patients of different folds are not independent cases:
    the variance over them has no unbiased estimate (Bengio and Grandvalet 2004), and intervals that assume
    independence are too short (Bates, Hastie and Tibshirani 2023).
    """
    if config.folds:
        return CaseValues(why_not="with folds, patients train and test in turn and are not independent cases")
    found: dict[Key, tuple[float, dict[str, float]]] = {}
    for run in runs:
        if run.measures and run.seed in replicates:
            results = read_record(run.folder / "results.json")
            mean = float(results["metrics"][config.metric]["mean"])
            found[run.name, run.cell, run.seed] = mean, by_patient(results, config.metric)
    return collect(found, config.metric)


def _check_split(run: Run, split: Any, splits: dict[str, tuple[Path, Any]]) -> None:
    labels = [value for key, value in run.cell if key == "num_labelled"]
    other, theirs = splits.setdefault(json.dumps([run.seed, run.fold, labels]), (run.folder, split))
    if split != theirs:
        raise DataError(
            problem=f"{run.folder} and {other}: have other labelled or test patients in one replicate",
            remedy="delete both and run them on one prepared store",
        )


def complete_replicates(table: pd.DataFrame, config: CompareConfig) -> list[int]:
    """The seeds for which every arm has a number in every cell and fold."""
    if table.empty:
        return []
    counts = table[table[config.metric].notna() & table["arm"].isin(list(config.arms))].groupby("seed").size()
    expected = len(config.arms) * len(cells(config)) * (config.folds or 1)
    return [int(seed) for seed, count in counts.items() if count == expected]  # type: ignore[call-overload]


def progress(runs: Sequence[Run], config: CompareConfig) -> tuple[int, int]:
    """Number of finished measurements, and of replicates in which all are finished."""
    done = Counter(run.seed for run in finished(runs) if run.measures)
    planned = Counter(run.seed for run in runs if run.measures)
    return done.total(), sum(done[seed] == count for seed, count in planned.items())


def contrasts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Differences of each pretraining and each arm of one replicate from the first."""
    rows: list[dict[str, Any]] = []
    for command in COMMANDS:
        first = [run for run in runs if run.seed == runs[0].seed and run.represents_replicate]
        same = [run for run in first if run.command == command]
        same = [run for run in same if run.cell == same[0].cell]
        for run in same[1:]:
            found = [one for one in differences(same[0].planned, run.planned) if one.field != "out_dir"]
            rows.append({"what": f"{command} {run.name}", "other": same[0].name, "differences": found})
    return rows


def also_differing(runs: Sequence[Run]) -> list[str]:
    """A sentence on the fields in which arms differ besides what is compared (the file may allow them)."""
    found = [one for row in contrasts(runs) for one in row["differences"]]
    named = ", ".join(sorted({one.field for one in found if not one.within(("init", *COMPARED))}))
    others = f"Besides pairs, objective and placebo, the arms' runs differ in {named}"
    return [f"{others}, which may explain differences."] if named else []


def moved(runs: Sequence[Run], config: CompareConfig, roots: Sequence[Path]) -> list[Run]:
    """The planned runs that `roots` hold: each root is a run folder, or a folder of them, named as in
    `out_dir`.

    Missing runs are left out. DataError if two folders hold the same run, or if no run is found.
    """
    folders = sorted(
        {
            file.parent
            for root in roots
            for file in root.rglob("config.yaml")
            if UNPACKED not in file.relative_to(root).parts  # archives that were read before
        }
    )
    found: list[Run] = []
    for run in runs:
        inside = run.folder.relative_to(config.out_dir).parts
        places = [folder for folder in folders if folder.resolve().parts[-len(inside) :] == inside]
        if len(places) > 1:
            raise DataError(
                problem=f"{' and '.join(map(str, places))} hold the same run",
                remedy="remove one of them from --from",
            )
        for place in places:
            root = Path(*place.resolve().parts[: -len(inside)])
            needs = None if run.needs is None else root / run.needs.relative_to(config.out_dir)
            found.append(replace(run, folder=place, needs=needs, moved_to=root))
    if not found:
        raise DataError(
            problem=f"no run of this comparison is in {', '.join(map(str, roots))}",
            remedy=f"give run folders, or folders of them, whose paths end as in {runs[-1].folder}",
        )
    return found
