"""Whether strategy, objective and batch of a pretraining fit each other, found out before anything is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from medcl3d.data.collection import Collection
from medcl3d.errors import ConfigError
from medcl3d.objectives import OBJECTIVES
from medcl3d.pairs import PAIRS, PairStrategy, every_part, parts_of, queue_size
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.companions import Companions, companions_of
from medcl3d.types import Triple

if TYPE_CHECKING:
    from medcl3d.training.pretrain import PretrainConfig


def shapes_of_roles(strategy: PairStrategy, collection: Collection, anchors: Anchors) -> dict[str, Triple]:
    """The grids of the views that a sample holds, by role."""
    views = strategy.sample(collection, int(anchors.ids[0]), np.random.default_rng(0))
    return {view.role: view.out_shape for view in views}


def check_uses(config: PretrainConfig, strategy: PairStrategy, objective: Any) -> None:
    """ConfigError where an objective would ignore what a strategy knows, or measures similarities in other units."""
    informs = frozenset(getattr(strategy, "informs", ("positive", "negative")))
    names = f"pairs.{config.pairs.name} with objective.{config.objective.name}"
    if objective.uses and not informs & objective.uses:
        raise ConfigError(
            f"{names}: the strategy speaks through the {' and '.join(sorted(informs))} part of the relation alone, and the objective "
            f"uses {' and '.join(sorted(objective.uses))} only; choose another objective, or another strategy"
        )
    if queue_size(strategy) and not objective.dim:
        raise ConfigError(
            f"{names}: the strategy keeps a queue of vectors, and the objective has none of one kind; choose another of the two"
        )
    for part in every_part(strategy):
        told, own = getattr(part, "temperature", None), getattr(objective, "temperature", None)
        if told is not None and told != own:
            raise ConfigError(f"{names}: temperature = {told} in the strategy and {own} in the objective; give both the same")


def check_together(config: PretrainConfig, companions: Companions | None) -> None:
    """ConfigError if groups of samples would lie across the border of two batches."""
    samples = config.train.samples_per_step
    if companions is None or samples % companions.group_size == 0:
        return
    sizes = {"together": companions.together, "samples_per_scan": companions.samples_per_scan}
    named = " times ".join(f"{field} = {size}" for field, size in sizes.items() if size > 1)
    raise ConfigError(
        f"train.samples_per_step = {samples} is no multiple of pairs.{config.pairs.name}: {named}; "
        f"{max(1, samples // companions.group_size) * companions.group_size} would do"
    )


def check_not_alone(config: PretrainConfig) -> None:
    """ConfigError where a batch holds one sample, and the objective needs others to tell it from."""
    objective = OBJECTIVES.get(config.objective.name)
    if config.train.samples_per_step == 1 and "negative" in objective.uses and not objective.decodes:  # type: ignore[attr-defined]
        raise ConfigError(
            f"train.samples_per_step = 1: objective.{config.objective.name} tells a sample from the others of its batch; "
            "set samples_per_step to 2 or more"
        )


DRAWN = 16  # samples that are drawn to see whether they hold other scans than their anchor


def without_effect(config: PretrainConfig, strategy: PairStrategy, objective: Any, collection: Collection, anchors: Anchors) -> list[str]:
    """A line for each field that says only which samples of one scan repel, and cannot have an effect; defaults are not reported."""
    if not objective.uses:  # a control without pairs
        return []
    samples, why = config.train.samples_per_step, ""
    if "negative" not in objective.uses:
        why = f"objective.{config.objective.name} uses no negatives; choose another objective"
    elif not _meet(samples, strategy, objective, collection, anchors):
        why = f"a step of {samples} samples never holds two of one scan ({len(anchors.ids)} scans); set samples_per_scan to 2 or more"
    lines: list[str] = []
    for part, relates in _relating(strategy):
        defaults: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(part)} if dataclasses.is_dataclass(part) else {}
        changed = [name for name in getattr(part, "within_scan", ()) if getattr(part, name) != defaults.get(name)]
        because = why if relates else "the inner strategy draws the views, and its relation is not used; leave the field out"
        of = "" if part is strategy else f" of {_name(part)}"
        told = (f"warning: pairs.{config.pairs.name}: {name}{of} = {getattr(part, name)} has no effect: {because}" for name in changed)
        lines += told if because else ()
    return lines


def _relating(strategy: PairStrategy, relates: bool = True) -> Iterator[tuple[PairStrategy, bool]]:
    """A strategy and all its parts, each with whether its relation is used."""
    yield strategy, relates
    for part in parts_of(strategy):
        yield from _relating(part, relates and not getattr(strategy, "inner_draws_only", False))


def _name(strategy: PairStrategy) -> str:
    return next((name for name in PAIRS.names() if PAIRS.get(name) is type(strategy)), type(strategy).__name__)


def _meet(samples: int, strategy: PairStrategy, objective: Any, collection: Collection, anchors: Anchors) -> bool:
    """Whether two samples of one scan can meet: in one step, or one of them in a queue."""
    if samples > len(anchors.ids) or companions_of(strategy, collection) is not None:
        return True
    if queue_size(strategy) or getattr(objective, "queue_size", 0):
        return True
    rng, some = np.random.default_rng(0), np.resize(anchors.ids, DRAWN).tolist()
    return any(view.scan != anchor for anchor in some for view in strategy.sample(collection, anchor, rng))
