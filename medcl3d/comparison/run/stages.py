"""Screening and confirmation: a confirmation needs new seeds and test patients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.runs import Run
from medcl3d.config.loading import load
from medcl3d.config.packaged import find_config
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.io.json_file import read_record


def check_confirmation(runs: Sequence[Run], config: CompareConfig, name: str) -> None:
    """Check this comparison against its screening, if `screening` is set.

    ConfigError if `screening` is not a screening, or shares a seed; DataError if the two share a test
    patient, as far as results of both, or this one's split.json, exist. `name` is this comparison's file in
    messages.
    """
    if config.screening is None:
        return
    if config.stage != "confirm":
        remedy = "remove the line, or set stage: confirm"
        raise ConfigError("screening", None, "a screening does not confirm", remedy, place=name)
    screening = load(find_config(str(config.screening)), (), CompareConfig)
    if screening.stage != "screen":
        problem, remedy = f"{config.screening} is not a screening", "set stage: screen there before it runs"
        raise ConfigError("screening", None, problem, remedy, place=name)
    if both := sorted(set(screening.seeds) & set(config.seeds)):
        problem = f"{config.screening} used seed {both[0]}"
        remedy = f"set first_seed to {screening.seeds.stop} or more"
        raise ConfigError("first_seed", None, problem, remedy, place=name)
    seen = _tested(sorted((screening.out_dir / screening.measured_by[0]).rglob("results.json")))
    own = _tested([run.folder / "results.json" for run in runs if run.measures]) | _to_test(runs)
    if seen & own:
        some = ", ".join(sorted(seen & own)[:5])
        problem = f"{len(seen & own)} test patients were used in the screening ({some})"
        raise DataError(name, problem, f"confirm on patients that {config.screening} did not use")


def _tested(files: Sequence[Path]) -> set[str]:
    return {str(patient) for file in files for patient in read_record(file).get("split", {}).get("test", [])}


def _to_test(runs: Sequence[Run]) -> set[str]:
    """The test patients of the data that the runs read, if it is prepared; with folds, of each fold."""
    sides = {
        (str(run.planned["data"]["root"]), run.planned["data"].get("fold"))
        for run in runs
        if run.measures and "data" in run.planned
    }
    found: set[str] = set()
    for root, fold in sides:
        split = read_record(Path(root) / "split.json")
        folds = split.get("folds", [])
        if fold is None:
            found.update(map(str, split.get("test", [])))
        elif fold < len(folds):
            found.update(map(str, folds[fold]))
    return found
