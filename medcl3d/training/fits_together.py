"""Whether strategy, objective and batch of a pretraining fit each other, found out before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from medcl3d.data.collection import Collection
from medcl3d.errors import ConfigError
from medcl3d.objectives import OBJECTIVES
from medcl3d.pairs import PairStrategy, every_part, queue_size
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.companions import Companions
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
    """ConfigError where groups of companions would lie across the border of two batches."""
    samples = config.train.samples_per_step
    if companions is not None and samples % companions.together:
        raise ConfigError(
            f"train.samples_per_step = {samples} is no multiple of pairs.{config.pairs.name}: together = {companions.together}; "
            f"{max(1, samples // companions.together) * companions.together} would do"
        )


def check_not_alone(config: PretrainConfig) -> None:
    """ConfigError where a batch holds one sample, and the objective needs others to tell it from."""
    objective = OBJECTIVES.get(config.objective.name)
    if config.train.samples_per_step == 1 and "negative" in objective.uses and not objective.decodes:  # type: ignore[attr-defined]
        raise ConfigError(
            f"train.samples_per_step = 1: objective.{config.objective.name} tells a sample from the others of its batch; "
            "set samples_per_step to 2 or more"
        )
