"""Checks of the fields of a comparison, before any run is planned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from medcl3d.comparison.plan.cells import FOLD, dotted, slug
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.core.errors import ConfigError
from medcl3d.evaluation.metrics.directions import Direction, direction_of

LONGEST_NAME = 80
Problems = Iterator[tuple[str, str]]
"""Fields as dotted paths, each with its problem and a remedy."""


def check_fields(config: CompareConfig, name: str) -> None:
    """ConfigError if the fields of a comparison are not compatible; `name` is its file in messages."""
    vary = dotted(config.vary)
    problems = chain(
        _directions(config),
        _references(config),
        _folder_names(config.arms, "arms"),
        _folder_names(config.pretrainings, "pretrainings"),
        _varied(vary),
        _cells(config, vary),
        _arms(config, vary),
        _owned(config),
    )
    for field, problem in problems:
        raise ConfigError(field, None, problem, place=name)


def _directions(config: CompareConfig) -> Problems:
    yield from _direction("better", config.metric, config.better, config.better)
    for index, (given, one) in enumerate(zip(config.next_endpoints, config.later, strict=True)):
        yield from _direction(f"next_endpoints.{index}.better", one.metric, one.better, given.better)


def _direction(field: str, metric: str, better: Direction | None, given: Direction | None) -> Problems:
    """better: the field, or the direction that it inherits; given: the field."""
    direction = direction_of(metric)
    if direction is None and better is None:
        yield field, f"the direction of {metric!r} is not known; set `better: higher` or `better: lower`"
    if direction is not None and given not in (None, direction):
        yield field, f"{given} values of {metric} are worse; remove the line"


def _references(config: CompareConfig) -> Problems:
    """Fields that name arms, and arms that name pretrainings."""
    named = {"reference": config.reference}
    if config.anchors is not None:
        named |= {"anchors.low": config.anchors.low, "anchors.high": config.anchors.high}
    for field, arm in named.items():
        if arm not in config.arms:
            yield field, f"no arm is named {arm!r}; use one of {', '.join(config.arms)}"
    others = [arm for arm in config.arms if arm != config.reference]
    for arm in config.family:
        if arm not in others or config.family.count(arm) > 1:
            known = f"use some of {', '.join(others)}"
            yield "family", f"{arm!r} is not an arm other than the reference, listed once; {known}"
    known = ", ".join(config.pretrainings)
    for arm, of in config.arms.items():
        if of.pretraining is not None and of.init is not None:
            problem = "an arm starts from a pretraining or from weights of another project; remove one"
            yield f"arms.{arm}.init", problem
        if of.pretraining is not None and of.pretraining not in config.pretrainings:
            problem = f"no pretraining is named {of.pretraining!r}; use one of {known}"
            yield f"arms.{arm}.pretraining", problem


def _folder_names(names: Mapping[str, Any], field: str) -> Problems:
    slugs = [slug(name) for name in names]
    if twice := [name for name in names if slugs.count(slug(name)) > 1]:
        shared = f"{' and '.join(map(repr, twice))} would share one folder"
        yield field, f"{shared}; use names that differ in letters or digits"
    if long := [name for name in names if len(name) > LONGEST_NAME]:
        limit = f"use {LONGEST_NAME} at most, since names become folder names"
        yield field, f"{long[0]!r} has {len(long[0])} characters; {limit}"
    if odd := [name for name in names if not name.isprintable()]:
        yield field, f"{odd[0]!r} contains line breaks or control characters; use names of one line"


def _varied(vary: Mapping[str, Any]) -> Problems:
    if FOLD in vary:
        one_fold = "varies measurements only, while all pretrainings would use one fold"
        yield f"vary.{FOLD}", f"{one_fold}; set `folds: 5` to pretrain and measure each fold"
    for key, values in vary.items():
        scalars = isinstance(values, list) and all(isinstance(value, str | int | float) for value in values)
        if not scalars or not values or len(set(values)) < len(values):
            yield f"vary.{key}", f"a list of different numbers or words is required, not {values!r}"
        if len(set(map(slug, map(str, values)))) < len(values):
            remedy = "use values that differ in letters or digits"
            yield f"vary.{key}", f"some of {values!r} would share one folder; {remedy}"


def _cells(config: CompareConfig, vary: Mapping[str, Any]) -> Problems:
    """Fields that select cells."""
    chosen = {"endpoint": config.endpoint}
    if config.anchors is not None:
        chosen["anchors.high_endpoint"] = config.anchors.high_endpoint
    chosen |= {f"next_endpoints.{index}.endpoint": one.endpoint for index, one in enumerate(config.later)}
    for field, cells in chosen.items():
        for key, value in dotted(cells).items():
            if key not in vary:
                known = ", ".join(vary) or "none, since nothing varies"
                yield f"{field}.{key}", f"does not vary; use one of {known}"
            elif value not in vary[key]:
                remedy = f"use one of {vary[key]}, or remove the line for all"
                yield f"{field}.{key}", f"{value!r} is not among the varied values; {remedy}"


def _arms(config: CompareConfig, vary: Mapping[str, Any]) -> Problems:
    for name, arm in config.arms.items():
        if both := [key for key in dotted(arm.set) if key in vary]:
            yield f"arms.{name}.set", f"{both[0]} varies over all arms; remove it here or from `vary`"


def _owned(config: CompareConfig) -> Problems:
    """Fields of runs that the comparison sets itself."""
    measured_by, recipe = config.measured_by
    given = {
        "pretrain": config.pretrain,
        f"{measured_by}.set": recipe.set,
        "vary": config.vary,
        **{f"arms.{name}.set": arm.set for name, arm in config.arms.items()},
        **{f"pretrainings.{name}.set": one.set for name, one in config.pretrainings.items()},
    }
    own = {"seed", "out_dir", "init", *([FOLD] if config.folds else [])}
    for field, fields in given.items():
        for key in dotted(fields):
            if key in own:
                yield f"{field}.{key}", "the comparison sets this field itself; remove it"
