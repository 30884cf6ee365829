"""Screening picks, confirmation claims: on new seeds and on test patients that the screening did not see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medcl3d.comparison.config import CompareConfig
from medcl3d.comparison.launch import read_json
from medcl3d.comparison.plan import Run
from medcl3d.config import load
from medcl3d.errors import ConfigError, DataError
from medcl3d.packaged_configs import find_config


def check_confirmation(runs: Sequence[Run], config: CompareConfig, name: str) -> None:
    """Nothing where the comparison names no screening.

    ConfigError where that is none, or has a seed of this one; DataError where the two test a patient in common, as far as
    results of both, or this one's split.json, are there. `name` stands for this comparison's file in errors.
    """
    if config.screened is None:
        return
    if config.stage != "confirm":
        raise ConfigError(f"{name}: screened: a screening confirms nothing; take it out, or set stage: confirm")
    screening = load(find_config(str(config.screened)), (), CompareConfig)
    if screening.stage != "screen":
        raise ConfigError(f"{name}: screened: {config.screened} is no screening; set stage: screen there before it runs")
    both = sorted(set(_seeds(screening)) & set(_seeds(config)))
    if both:
        free = screening.first_seed + screening.replicates
        raise ConfigError(f"{name}: first_seed: {config.screened} has used seed {both[0]}; set first_seed to {free} or more")
    seen = _tested(sorted((screening.out_dir / screening.measured_by[0]).rglob("results.json")))
    own = _tested([run.folder / "results.json" for run in runs if run.measures]) | _to_test(runs)
    if seen & own:
        some = ", ".join(sorted(seen & own)[:5])
        raise DataError(
            f"{name}: {len(seen & own)} test patients were screened on ({some}); confirm on patients that {config.screened} left out"
        )


def _seeds(config: CompareConfig) -> range:
    return range(config.first_seed, config.first_seed + config.replicates)


def _tested(files: Sequence[Path]) -> set[str]:
    return {str(patient) for file in files for patient in read_json(file).get("split", {}).get("test", [])}


def _to_test(runs: Sequence[Run]) -> set[str]:
    """The test side of the data that the runs read, where it is prepared; with folds, of each that tests."""
    sides = {(str(run.planned["data"]["root"]), run.planned["data"].get("fold")) for run in runs if run.measures and "data" in run.planned}
    found: set[str] = set()
    for root, fold in sides:
        split = read_json(Path(root) / "split.json")
        folds = split.get("folds", [])
        found |= set(map(str, split.get("test", []) if fold is None else folds[fold] if fold < len(folds) else []))
    return found
