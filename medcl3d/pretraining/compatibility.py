"""Compatibility checks of strategy, objective and batch size, before a pretraining starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from torch import nn

from medcl3d.core.collection import Collection
from medcl3d.core.errors import ConfigError, inside
from medcl3d.core.geometry import Triple
from medcl3d.encoders.network import check_patch_size
from medcl3d.objectives import (
    ComparesPoints,
    HasTemperature,
    IgnoresQueue,
    Objective,
    objective_type,
    queue_size_of,
)
from medcl3d.pairs import (
    PAIRS,
    PairStrategy,
    all_parts,
    needs_features,
    parts_of,
    queue_size,
    relates_points,
    traits_of,
)
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.batch_grouping import BatchGrouping, batch_grouping_of
from medcl3d.training.grad_cache import refuse_batch_statistics
from medcl3d.training.options import check_options
from medcl3d.views import ViewRecipe, flip_probability_of

if TYPE_CHECKING:
    from medcl3d.pretraining.config import PretrainConfig
    from medcl3d.pretraining.parts import Pretraining


def check_parts(parts: Pretraining) -> None:
    """Check that the parts of a pretraining are compatible. ConfigError names the first conflict."""
    config, strategy, objective = parts.config, parts.strategy, parts.learner.objective
    network, collection = parts.learner.network, parts.scans.collection
    check_options(config.train)
    if config.loader == "torchio":
        from medcl3d.sampling.torchio_sampler import refuse_across_patients

        refuse_across_patients(strategy)
    check_batch_grouping(config, batch_grouping_of(strategy, collection))
    check_negatives(config)
    with inside("pairs", config.pairs.name):
        check_uses(config, strategy, objective)
    check_points(strategy, objective)
    check_frames(parts)
    check_sides(config, strategy, parts.learner.recipe)
    if config.train.grad_cache:
        chunk = config.train.grad_cache
        module = cast(nn.Module, objective)
        refuse_batch_statistics(chunk, config.encoder.name, network, config.objective.name, module)
    for role, shape in shapes_of_roles(strategy, collection, parts.anchors).items():
        of_role = f"pairs.{config.pairs.name}: the size of {role} views"
        check_patch_size(network, shape, "data.patch_size" if role == "global" else of_role)


def check_points(strategy: PairStrategy, objective: Objective) -> None:
    """ConfigError if an objective of points cannot use the relation of a strategy of crops.

    Weights and neighbours of features would be those of points, and the relation that of their crops. A
    combination relates points only if all its parts do. Points of one crop repel whatever the relation of
    crops is, so that negatives cannot be excluded there.
    """
    if not isinstance(objective, ComparesPoints) or relates_points(strategy):
        return
    problem = ""
    if needs_features(strategy):
        problem = "the relation depends on features of crops, and the objective compares points"
        remedy = "choose an inner strategy that relates points, or an objective of whole views"
    elif any(traits_of(part).signal_weights == {"negative"} for part in all_parts(strategy)):
        problem = "only negatives of crops are excluded, and the points of one crop would repel nevertheless"
        remedy = "choose an inner strategy that relates points, or an objective of whole views"
    elif any(used and relates_points(part) for part, used in _relating(strategy)):
        problem = "some parts relate points and others crops, and the objective compares points"
        remedy = "combine strategies of one kind, or choose an objective of whole views"
    if problem:
        raise ConfigError(problem=problem, remedy=remedy, place="pairs")


def check_frames(parts: Pretraining) -> None:
    """ConfigError if an objective of points gets views of scans that share no frame, hence no point."""
    if not isinstance(parts.learner.objective, ComparesPoints):
        return
    collection, rng, config = parts.scans.collection, np.random.default_rng(0), parts.config
    for anchor in np.resize(parts.anchors.ids, DRAWN).tolist():
        first, *others = parts.strategy.sample(collection, anchor, rng)
        if all(collection.share_frame(first.scan, one.scan) for one in others if one.role == first.role):
            return
    raise ConfigError(
        problem="the views of a sample are of scans in different frames, so no point is in all of them",
        remedy="register these scans and give them one `frame`, or choose an objective of whole views",
        place=f"pairs.{config.pairs.name} with objective.{config.objective.name}",
    )


def check_sides(config: PretrainConfig, strategy: PairStrategy, recipe: ViewRecipe) -> None:
    """ConfigError if views exchange left and right, and the strategy distinguishes them."""
    flips = flip_probability_of(recipe)
    if flips[0] and any(traits_of(part).distinguishes_sides for part in all_parts(strategy)):
        raise ConfigError(
            "flip_probability",
            list(flips),
            f"flips left and right, which pairs.{config.pairs.name} distinguishes",
            f"set flip_probability to {[0, *flips[1:]]}",
            owner=f"views.{config.views.name}",
            colon=False,
        )


def shapes_of_roles(strategy: PairStrategy, collection: Collection, anchors: Anchors) -> dict[str, Triple]:
    """The grid shapes of a sample's views, by role."""
    views = strategy.sample(collection, int(anchors.ids[0]), np.random.default_rng(0))
    return {view.role: view.out_shape for view in views}


def check_uses(config: PretrainConfig, strategy: PairStrategy, objective: Objective) -> None:
    """ConfigError if an objective ignores a relation, lacks a queue, or has another temperature."""
    signal = traits_of(strategy).signal_weights
    names = f"pairs.{config.pairs.name} with objective.{config.objective.name}"
    if objective.uses and not signal & objective.uses:
        raise ConfigError(
            problem=f"the strategy sets only the {' and '.join(sorted(signal))} weights of the relation, and "
            f"the objective uses only the {' and '.join(sorted(objective.uses))} weights",
            remedy="choose another objective or strategy",
            place=names,
        )
    ignores = isinstance(objective, IgnoresQueue) or bool(queue_size_of(objective))
    if queue_size(strategy) and (ignores or not objective.dim):
        problem = "the strategy needs an embedding queue, which the objective does not support"
        remedy = "choose another objective or strategy"
        raise ConfigError(problem=problem, remedy=remedy, place=names)
    own = objective.temperature if isinstance(objective, HasTemperature) else None
    for part in all_parts(strategy):
        pairs = traits_of(part).temperature
        if pairs is not None and pairs != own:
            problem = f"temperature = {pairs} in the strategy and {own} in the objective"
            remedy = "set both to the same value"
            raise ConfigError(problem=problem, remedy=remedy, place=names)


def check_batch_grouping(config: PretrainConfig, batch_grouping: BatchGrouping | None) -> None:
    """ConfigError if a batch does not hold whole groups of samples."""
    samples = config.train.samples_per_step
    if batch_grouping is None or samples % batch_grouping.samples_per_group == 0:
        return
    sizes = {"group_size": batch_grouping.group_size, "samples_per_scan": batch_grouping.samples_per_scan}
    named = " times ".join(f"{field} = {size}" for field, size in sizes.items() if size > 1)
    problem = f"is not a multiple of pairs.{config.pairs.name}: {named}"
    remedy = f"use {max(1, samples // batch_grouping.samples_per_group) * batch_grouping.samples_per_group}"
    raise ConfigError("train.samples_per_step", samples, problem, remedy, colon=False)


def check_negatives(config: PretrainConfig) -> None:
    """ConfigError if a batch holds one sample and the objective needs negatives."""
    objective = objective_type(config.objective.name)
    if config.train.samples_per_step == 1 and "negative" in objective.uses and not objective.decodes:
        problem = f"objective.{config.objective.name} needs negatives from other samples of the batch"
        remedy = "set samples_per_step to 2 or more"
        raise ConfigError("train.samples_per_step", 1, problem, remedy)


DRAWN = 16  # samples drawn to test whether they contain scans of other frames, or other than their anchor
EPOCHS = 3  # epochs of the plan that are tested for steps with several samples of one scan


def fields_without_effect(parts: Pretraining) -> list[str]:
    """Warnings about fields without an effect: those that set which samples of one scan repel.

    Defaults are skipped.
    """
    config, strategy, objective = parts.config, parts.strategy, parts.learner.objective
    changed = [
        (part, name, relates)
        for part, relates in _relating(strategy)
        for name in traits_of(part).within_scan
        if getattr(part, name) != _default(part, name)
    ]
    if not changed or not objective.uses:  # a control without pairs uses nothing
        return []
    why = ""
    if "negative" not in objective.uses:
        why = f"objective.{config.objective.name} uses no negatives; choose another objective"
    elif not _can_share_scan(parts):
        why = (
            f"a step of {config.train.samples_per_step} samples never holds two of one scan "
            f"({len(parts.anchors.ids)} scans); set samples_per_scan to 2 or more"
        )
    lines = []
    for part, name, relates in changed:
        inner = "only the views of the inner strategy are used, not its relation; leave the field out"
        because = why if relates else inner
        of = "" if part is strategy else f" of {_name(part)}"
        if because:
            lines.append(
                f"warning: pairs.{config.pairs.name}: {name}{of} = {getattr(part, name)} has no effect: "
                f"{because}"
            )
    return lines


def _relating(strategy: PairStrategy, relates: bool = True) -> Iterator[tuple[PairStrategy, bool]]:
    """Iterate over a strategy and all its parts, each with whether its relation is used."""
    yield strategy, relates
    for part in parts_of(strategy):
        yield from _relating(part, relates and not traits_of(strategy).inner_draws_only)


def _default(part: PairStrategy, name: str) -> Any:
    """The default of a field; None if it has none."""
    if not dataclasses.is_dataclass(part):
        return None
    return next((field.default for field in dataclasses.fields(part) if field.name == name), None)


def _name(strategy: PairStrategy) -> str:
    return next(
        (name for name in PAIRS.names() if PAIRS.get(name) is type(strategy)), type(strategy).__name__
    )


def _can_share_scan(parts: Pretraining) -> bool:
    """Whether two samples of one scan can be compared: both in one step, or one of them in a queue."""
    strategy, collection, ids = parts.strategy, parts.scans.collection, parts.anchors.ids
    if queue_size(strategy) or queue_size_of(parts.learner.objective):
        return True
    # Groups of several patients repeat a scan only if no unused scan fits.
    plan = parts.plan()
    steps = range(min(parts.config.train.steps, EPOCHS * plan.steps_per_epoch))
    if any(len(np.unique(anchors)) < len(anchors) for _, anchors in map(plan.samples, steps)):
        return True
    rng, tried = np.random.default_rng(0), np.resize(ids, DRAWN).tolist()
    return any(view.scan != anchor for anchor in tried for view in strategy.sample(collection, anchor, rng))
