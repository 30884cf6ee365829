"""The runs of a comparison: one pretraining per replicate, one measurement per replicate, arm and cell.

Replicate r uses the seed r for pretraining, label selection and fine-tuning of every arm, and replicates
are planned one after the other, so an interrupted plan is still a balanced comparison. With folds,
a replicate repeats all of this for each fold.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from medcl3d.comparison.plan.cells import FOLD, Cell, cells, dotted, slug
from medcl3d.comparison.plan.check_fields import check_fields
from medcl3d.comparison.plan.config import Command, CompareConfig, Recipe
from medcl3d.config.kinds import CONFIGS
from medcl3d.config.loading import load
from medcl3d.config.packaged import find_config
from medcl3d.config.plain import differences, listed, plain
from medcl3d.config.yaml_tree import COMMAND_LINE
from medcl3d.core.errors import ConfigError
from medcl3d.layouts.foreign import ForeignWeights

COMMANDS: tuple[Command, ...] = get_args(Command)
SAMPLES_OF_AN_EVALUATION = 2000  # an evaluation takes about the time of as many samples, forward and backward
COMPARED = ("pairs", "objective", "placebo")
"""Fields in which pretrainings may always differ; any other must be named in the comparison's file."""


@dataclass(frozen=True)
class Run:
    """One command in one run folder.

    planned    its resolved configuration
    needs      the folder of the pretraining that it starts from
    fold       the fold of the split that tests, None without folds
    moved_to   the out_dir of the folder, if it was moved from the planned one
    """

    command: Command
    name: str
    cell: Cell
    seed: int
    config: Path
    overrides: tuple[str, ...]
    folder: Path
    needs: Path | None
    planned: Mapping[str, Any]
    fold: int | None = None
    moved_to: Path | None = None

    @property
    def measures(self) -> bool:
        """Whether the run measures an arm."""
        return self.command != "pretrain"

    @property
    def represents_replicate(self) -> bool:
        """Whether the run represents its replicate in pictures and configurations: the first fold does."""
        return not self.fold

    @property
    def steps(self) -> int:
        """Training steps; 0 if nothing is trained."""
        return int(self.planned.get("train", {}).get("steps", 0))

    @property
    def size(self) -> int:
        """Number of samples that the run processes, a measure of its duration."""
        if not self.steps:
            return SAMPLES_OF_AN_EVALUATION
        return self.steps * int(self.planned["train"].get("samples_per_step", 1))

    def __str__(self) -> str:
        cell = [f"{key}={value}" for key, value in self.cell]
        fold = [] if self.fold is None else [f"fold {self.fold}"]
        return ", ".join([f"{self.command} {self.name}", *cell, f"replicate {self.seed}", *fold])


def as_overrides(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Dotted keys and values as command-line overrides, text in quotes."""
    return tuple(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items())


def model_of(command: Command) -> type:
    """The configuration type of a command (imported on demand, since it imports torch)."""
    model: type = pkgutil.resolve_name(CONFIGS[command])
    return model


def refuse_fields_of_runs(overrides: Sequence[str]) -> None:
    """ConfigError for an override such as `train.steps=9`, which does not name the runs that it is for."""
    own = {one.name for one in dataclasses.fields(CompareConfig)}
    for text in overrides:
        key = text.partition("=")[0].partition(".")[0]
        known = {
            command: key in {one.name for one in dataclasses.fields(model_of(command))}
            for command in COMMANDS
        }
        if key in own or not any(known.values()):
            continue
        measured = " or ".join(f"{command}.set.{text}" for command in COMMANDS[1:] if known[command])
        places = [f"pretrain.{text} in all pretrainings"] if known["pretrain"] else []
        places += [f"{measured} in all measurements"] if measured else []
        problem, remedy = "a field of the runs of a comparison", f"set {', '.join(places)}"
        raise ConfigError(problem=problem, remedy=remedy, place=text, line=COMMAND_LINE)


def _run(
    command: Command,
    name: str,
    cell: Cell,
    recipe: Recipe,
    sets: Sequence[Mapping[str, Any]],
    folder: Path,
    needs: Path | None,
    foreign: ForeignWeights | None = None,
    *,
    seed: int,
    fold: int | None,
) -> Run:
    values: dict[str, Any] = {}
    for fields in sets:
        values |= dotted(fields)
    if command != "pretrain":
        values["init"] = plain(foreign) if foreign else "scratch" if needs is None else str(needs)
    values |= {"seed": seed, "out_dir": str(folder), **({} if fold is None else {FOLD: fold})}
    file = find_config(str(recipe.config))
    planned = plain(load(file, values, model_of(command)))
    return Run(command, name, cell, seed, file, as_overrides(values), folder, needs, planned, fold)


def plan(config: CompareConfig, name: str = "comparison") -> list[Run]:
    """All runs in order: replicate by replicate, pretrainings before the runs that need them.

    ConfigError if a configuration does not load, if names do not fit, or if compared runs would differ
    in more than what is compared. `name` is the file in messages.
    """
    check_fields(config, name)
    measured_by, measurement = config.measured_by
    used = [p for p in config.pretrainings if any(arm.pretraining == p for arm in config.arms.values())]
    runs: list[Run] = []
    folds = range(config.folds) if config.folds else (None,)
    for seed, fold in itertools.product(config.seeds, folds):
        last = Path(f"seed_{seed}") if fold is None else Path(f"seed_{seed}", f"fold_{fold}")
        run = partial(_run, seed=seed, fold=fold)
        at = {p: config.out_dir / "pretrain" / slug(p) / last for p in used}
        for p in used:
            recipe = config.pretrainings[p]
            runs.append(run("pretrain", p, (), recipe, (config.pretrain, recipe.set), at[p], None))
        for cell, (arm_name, arm) in itertools.product(cells(config), config.arms.items()):
            of_cell = slug("_".join(f"{k}={v}" for k, v in cell) or "all")
            folder = config.out_dir / measured_by / slug(arm_name) / of_cell / last
            needs = at[arm.pretraining] if arm.pretraining else None
            sets = (measurement.set, dict(cell), arm.set)
            runs.append(run(measured_by, arm_name, cell, measurement, sets, folder, needs, arm.init))
    check_comparable(runs, config, name)
    _check_steps(runs, name)
    if config.stage == "confirm" and any(run.planned.get("measured_on") == "validation" for run in runs):
        problem = "a confirmation measures on test patients, not on validation patients"
        raise ConfigError("stage", None, problem, "set `stage: screen`", place=name)
    return runs


def _check_steps(runs: Sequence[Run], name: str) -> None:
    """ConfigError unless pretrainings keep the weights after all steps that are measured."""
    trained = {run.folder: run.planned["train"] for run in runs if not run.measures}
    for run in runs:
        step = run.planned.get("step") if run.measures else None
        if step is None or run.needs is None:
            continue
        train = trained[run.needs]
        if step not in (*train["keep_steps"], train["steps"]):
            problem = f"the pretraining of arm {run.name} does not keep its weights after step {step}"
            remedy = f"set `pretrain: {{train.keep_steps: [{step}]}}`, or use {train['steps']}, its last step"
            raise ConfigError("step", step, problem, remedy, place=name)


def free_fields(command: Command, config: CompareConfig) -> list[str]:
    """The fields in which runs of one command may differ: the comparison's own, and those it names."""
    if command == "pretrain":
        own = [key for recipe in config.pretrainings.values() for key in dotted(recipe.set)]
        return ["out_dir", *COMPARED, *config.may_differ, *own]
    return ["out_dir", "init", *(key for arm in config.arms.values() for key in dotted(arm.set))]


def check_comparable(runs: Sequence[Run], config: CompareConfig, name: str = "comparison") -> None:
    """ConfigError unless runs of one command, cell, replicate and fold differ only in what is compared."""
    first: dict[tuple[str, Cell, int, int | None], Run] = {}
    for run in runs:
        other = first.setdefault((run.command, run.cell, run.seed, run.fold), run)
        free = free_fields(run.command, config)
        unexpected = [one for one in differences(other.planned, run.planned) if not one.within(free)]
        if unexpected:
            both = f"{other.command} {other.name!r} and {run.name!r}"
            problem = f"{both} differ in more than what is compared: {listed(unexpected)}"
            remedy = "Make them equal (`pretrain:` sets a field in all), or list the field in `may_differ`"
            raise ConfigError(problem=f"{problem}. {remedy}", place=name)
