"""The runs of a comparison: one pretraining per replicate, one measurement per replicate, arm and cell.

Replicate r uses the seed r for pretraining, label selection and fine-tuning of every arm, and replicates
are planned one after the other, so an interrupted plan is still a balanced comparison. With folds,
a replicate repeats all of this for each fold.
"""

from __future__ import annotations

import importlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcl3d.comparison.plan.config import Command, CompareConfig, Recipe
from medcl3d.config.loading import load
from medcl3d.config.packaged import find_config
from medcl3d.config.plain import Difference, differences, listed, plain
from medcl3d.core.errors import ConfigError
from medcl3d.evaluation.metrics.directions import direction_of

Cell = tuple[tuple[str, Any], ...]
"""One combination of the varied fields: dotted key and value, in the order of the configuration."""

MODELS: dict[Command, str] = {
    "pretrain": "medcl3d.pretraining.config:PretrainConfig",
    "finetune": "medcl3d.downstream.finetune:FinetuneConfig",
    "evaluate": "medcl3d.downstream.evaluate:EvaluateConfig",
}
SAMPLES_OF_AN_EVALUATION = 2000  # an evaluation takes about the time of as many samples, forward and backward
LONGEST_NAME = 80
FOLD = "data.fold"
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
        fold = [] if self.fold is None else [f"fold {self.fold}"]
        return ", ".join(
            [
                f"{self.command} {self.name}",
                *(f"{k}={v}" for k, v in self.cell),
                f"replicate {self.seed}",
                *fold,
            ]
        )


def dotted(fields: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested fields as dotted keys: ``{train: {steps: 9}}`` is ``{train.steps: 9}``.

    A choice, ``{simclr: {temperature: 0.1}}``, is one value: it replaces the previous choice.
    """
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        path = f"{above}.{key}" if above else key
        chosen = (
            isinstance(value, Mapping) and len(value) == 1 and isinstance(next(iter(value.values())), Mapping)
        )
        if isinstance(value, Mapping) and value and not chosen:
            flat |= dotted(value, path)
        else:
            flat[path] = value
    return flat


def as_overrides(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Dotted keys and values as command-line overrides, text in quotes."""
    return tuple(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items())


def slug(name: str) -> str:
    """A name as a folder name."""
    return re.sub(r"[^A-Za-z0-9.=-]+", "_", name).strip("_.") or "_"


def model_of(command: Command) -> type:
    """The configuration type of a command (imported on demand, since it imports torch)."""
    module, name = MODELS[command].split(":")
    return getattr(importlib.import_module(module), name)


def cells(config: CompareConfig) -> list[Cell]:
    """Every combination of the varied fields; one empty cell if nothing varies."""
    vary = dotted(config.vary)
    return [tuple(zip(vary, values, strict=True)) for values in itertools.product(*vary.values())]


def cell_words(cell: Cell) -> str:
    """A cell as a heading."""
    return ", ".join(f"{key} {value}" for key, value in cell) or "all"


def endpoint_cells(config: CompareConfig) -> list[Cell]:
    """The cells that the primary endpoint averages over."""
    wanted = dotted(config.endpoint).items()
    return [cell for cell in cells(config) if all(dict(cell)[key] == value for key, value in wanted)]


def family_of(config: CompareConfig) -> tuple[str, ...]:
    """The arms that are tested, as one family; the others are exploratory."""
    return config.family or tuple(name for name in config.arms if name != config.reference)


def check_names(config: CompareConfig, name: str) -> None:
    """ConfigError if the comparison's own fields are not compatible; `name` is its file in messages."""

    def fail(where: str, message: str) -> ConfigError:
        return ConfigError(where, None, message, place=name)

    direction = direction_of(config.metric)
    if direction is None and config.better is None:
        unknown = f"the direction of {config.metric!r} is not known; set `better: higher` or `better: lower`"
        raise fail("better", unknown)
    if direction is not None and config.better not in (None, direction):
        raise fail("better", f"{config.better} values of {config.metric} are worse; remove the line")
    if config.reference not in config.arms:
        raise fail("reference", f"no arm is named {config.reference!r}; use one of {', '.join(config.arms)}")
    for arm_name in config.family:
        if arm_name not in config.arms or arm_name == config.reference or config.family.count(arm_name) > 1:
            known = ", ".join(name for name in config.arms if name != config.reference)
            raise fail(
                "family",
                f"{arm_name!r} is not an arm other than the reference, listed once; use some of {known}",
            )
    for names, where in ((config.arms, "arms"), (config.pretrainings, "pretrainings")):
        twice = [n for n in names if [slug(m) for m in names].count(slug(n)) > 1]
        if twice:
            shared = f"{' and '.join(map(repr, twice))} would share one folder"
            raise fail(where, f"{shared}; use names that differ in letters or digits")
        if long := [n for n in names if len(n) > LONGEST_NAME]:
            limit = f"use {LONGEST_NAME} at most, since names become folder names"
            raise fail(where, f"{long[0]!r} has {len(long[0])} characters; {limit}")
        if odd := [n for n in names if not n.isprintable()]:
            raise fail(where, f"{odd[0]!r} contains line breaks or control characters; use names of one line")
    vary = dotted(config.vary)
    anchors = config.anchors
    for arm_name, where in ((anchors.low, "low"), (anchors.high, "high")) if anchors else ():
        if arm_name not in config.arms:
            raise fail(
                f"anchors.{where}", f"no arm is named {arm_name!r}; use one of {', '.join(config.arms)}"
            )
    if FOLD in vary:
        one_fold = "varies measurements only, while all pretrainings would use one fold"
        raise fail(f"vary.{FOLD}", f"{one_fold}; set `folds: 5` to pretrain and measure each fold")
    for key, values in vary.items():
        scalars = isinstance(values, list) and all(isinstance(v, str | int | float) for v in values)
        if not scalars or not values or len(set(values)) < len(values):
            raise fail(f"vary.{key}", f"a list of different numbers or words is required, not {values!r}")
        if len(set(map(slug, map(str, values)))) < len(values):
            raise fail(
                f"vary.{key}",
                f"some of {values!r} would share one folder; use values that differ in letters or digits",
            )
    chosen = {"endpoint": config.endpoint} | (
        {"anchors.high_endpoint": anchors.high_endpoint} if anchors else {}
    )
    for index, one in enumerate(config.later):
        where = f"next_endpoints.{index}"
        direction, given = direction_of(one.metric), config.next_endpoints[index].better
        if direction is None and one.better is None:
            unknown = f"the direction of {one.metric!r} is not known; set `better: higher` or `better: lower`"
            raise fail(f"{where}.better", unknown)
        if direction is not None and given not in (None, direction):
            raise fail(f"{where}.better", f"{given} values of {one.metric} are worse; remove the line")
        chosen[f"{where}.endpoint"] = one.endpoint
    for where, key, value in (
        (where, *item) for where, fields in chosen.items() for item in dotted(fields).items()
    ):
        if key not in vary:
            raise fail(
                f"{where}.{key}",
                f"does not vary; use one of {', '.join(vary) or 'none, since nothing varies'}",
            )
        if value not in vary[key]:
            raise fail(
                f"{where}.{key}",
                f"{value!r} is not among the varied values; use one of {vary[key]}, or remove the line "
                "for all",
            )
    for arm_name, arm in config.arms.items():
        if arm.pretraining is not None and arm.pretraining not in config.pretrainings:
            known = ", ".join(config.pretrainings)
            raise fail(
                f"arms.{arm_name}.pretraining",
                f"no pretraining is named {arm.pretraining!r}; use one of {known}",
            )
        both = [key for key in dotted(arm.set) if key in vary]
        if both:
            raise fail(
                f"arms.{arm_name}.set", f"{both[0]} varies over all arms; remove it here or from `vary`"
            )
    own = ("seed", "out_dir", "init", *([FOLD] if config.folds else []))
    owned = [(where, key) for where, fields in _all_set(config) for key in dotted(fields) if key in own]
    if owned:
        raise fail(f"{owned[0][0]}.{owned[0][1]}", "the comparison sets this field itself; remove it")


def _all_set(config: CompareConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "pretrain", config.pretrain
    measured_by, recipe = config.measured_by
    yield f"{measured_by}.set", recipe.set
    yield "vary", config.vary
    yield from ((f"arms.{name}.set", arm.set) for name, arm in config.arms.items())
    yield from ((f"pretrainings.{name}.set", recipe.set) for name, recipe in config.pretrainings.items())


def _run(
    command: Command,
    name: str,
    cell: Cell,
    seed: int,
    fold: int | None,
    recipe: Recipe,
    sets: Sequence[Mapping[str, Any]],
    folder: Path,
    needs: Path | None,
) -> Run:
    values: dict[str, Any] = {}
    for fields in sets:
        values |= dotted(fields)
    if command != "pretrain":
        values["init"] = "scratch" if needs is None else str(needs)
    values |= {"seed": seed, "out_dir": str(folder), **({} if fold is None else {FOLD: fold})}
    file = find_config(str(recipe.config))
    planned = plain(load(file, values, model_of(command)))
    return Run(command, name, cell, seed, file, as_overrides(values), folder, needs, planned, fold)


def plan(config: CompareConfig, name: str = "comparison") -> list[Run]:
    """All runs in order: replicate by replicate, pretrainings before the runs that need them.

    ConfigError if a configuration does not load, if names do not fit, or if compared runs would differ
    in more than what is compared. `name` is the file in messages.
    """
    check_names(config, name)
    measured_by, measurement = config.measured_by
    used = [p for p in config.pretrainings if any(arm.pretraining == p for arm in config.arms.values())]
    runs: list[Run] = []
    seeds, folds = (
        range(config.first_seed, config.first_seed + config.replicates),
        range(config.folds) if config.folds else (None,),
    )
    for seed, fold in itertools.product(seeds, folds):
        last = Path(f"seed_{seed}") if fold is None else Path(f"seed_{seed}", f"fold_{fold}")
        at = {p: config.out_dir / "pretrain" / slug(p) / last for p in used}
        for p in used:
            recipe = config.pretrainings[p]
            runs.append(
                _run("pretrain", p, (), seed, fold, recipe, (config.pretrain, recipe.set), at[p], None)
            )
        for cell, (arm_name, arm) in itertools.product(cells(config), config.arms.items()):
            folder = (
                config.out_dir
                / measured_by
                / slug(arm_name)
                / slug("_".join(f"{k}={v}" for k, v in cell) or "all")
                / last
            )
            needs = at[arm.pretraining] if arm.pretraining else None
            runs.append(
                _run(
                    measured_by,
                    arm_name,
                    cell,
                    seed,
                    fold,
                    measurement,
                    (measurement.set, dict(cell), arm.set),
                    folder,
                    needs,
                )
            )
    check_comparable(runs, config, name)
    if config.stage == "confirm" and any(run.planned.get("measured_on") == "validation" for run in runs):
        raise ConfigError(
            "stage",
            None,
            "a confirmation measures on test patients, not on validation patients",
            "set `stage: screen`",
            place=name,
        )
    return runs


def free_fields(command: Command, config: CompareConfig) -> list[str]:
    """The fields in which compared runs of one command may differ: the comparison's own, and those it
    names.
    """
    if command == "pretrain":
        return [
            "out_dir",
            *COMPARED,
            *config.may_differ,
            *(k for r in config.pretrainings.values() for k in dotted(r.set)),
        ]
    return ["out_dir", "init", *(k for arm in config.arms.values() for k in dotted(arm.set))]


def unexpected_differences(a: Run, b: Run, free: Iterable[str]) -> list[Difference]:
    """Differences of two runs other than the fields in which they may differ."""
    free = tuple(free)
    return [found for found in differences(a.planned, b.planned) if not found.within(free)]


def check_comparable(runs: Sequence[Run], config: CompareConfig, name: str = "comparison") -> None:
    """ConfigError unless runs of one command, cell, replicate and fold differ only in what is compared."""
    first: dict[tuple[str, Cell, int, int | None], Run] = {}
    for run in runs:
        other = first.setdefault((run.command, run.cell, run.seed, run.fold), run)
        unexpected = unexpected_differences(other, run, free_fields(run.command, config))
        if unexpected:
            raise ConfigError(
                problem=f"{other.command} {other.name!r} and {run.name!r} differ in more than what is "
                f"compared: {listed(unexpected)}. Make them equal (`pretrain:` sets a field in all), "
                "or list the field in `may_differ`",
                place=name,
            )
