"""This rank's contiguous slice of every global batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medcl3d.core.geometry import Triple
from medcl3d.distributed.seeding import Stream, generator
from medcl3d.sampling.plan import Plan
from medcl3d.views import ViewRecipe


@dataclass(frozen=True)
class RankSlice:
    """Sample `index` of step `step` on one rank: its anchor, its number and its random generators.

    A sample depends only on the seed, the step and its number, not on the number of ranks.
    """

    plan: Plan
    rank: int
    world_size: int

    @property
    def size(self) -> int:
        """Samples of one step on this rank."""
        return self.plan.samples_per_step // self.world_size

    def anchor(self, step: int, index: int) -> int:
        """The anchor of a sample."""
        _, anchors = self.plan.samples(step)
        return int(anchors[self.rank * self.size + index])

    def number(self, step: int, index: int) -> int:
        """The number of a sample in the run."""
        return step * self.plan.samples_per_step + self.rank * self.size + index

    def generator(self, step: int, index: int, stream: int) -> np.random.Generator:
        """A generator named by the epoch and the sample's number in the epoch."""
        epoch, batch = divmod(step, self.plan.steps_per_epoch)
        return generator(self.plan.seed, epoch, self.number(batch, index), stream)

    def parameters(self, step: int, recipe: ViewRecipe, size: Triple) -> dict[str, Tensor]:
        """Parameters of a view recipe for this rank's samples, stacked."""
        streams = (self.generator(step, index, Stream.VIEW) for index in range(self.size))
        return stacked([recipe.draw(rng, size) for rng in streams])


def stacked(draws: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Stack drawn parameters, one mapping per view, along a new first axis."""
    return {name: torch.stack([torch.as_tensor(one[name]) for one in draws]) for name in draws[0]}
