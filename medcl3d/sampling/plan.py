"""The anchors of every step, as a function of seed and epoch, and the slice of each rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from medcl3d.core.geometry import Triple
from medcl3d.distributed.seeding import Stream, generator
from medcl3d.pairs.batch_grouping import BatchGrouping
from medcl3d.views import ViewRecipe


@dataclass(frozen=True)
class Plan:
    """The anchor of each sample of the run: global batches as a function of (seed, epoch).

    batch_grouping  batch grouping, if the strategy requires it; an epoch then visits each anchor
                    `samples_per_scan` times
    """

    anchors: Int[np.ndarray, " m"]
    samples_per_step: int
    seed: int
    batch_grouping: BatchGrouping | None = None
    _orders: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass; few anchors are visited several times, so that an epoch has a batch."""
        visits = 1 if self.batch_grouping is None else self.batch_grouping.samples_per_scan
        return max(1, len(self.anchors) * visits // self.samples_per_step)

    def samples(self, step: int) -> tuple[int, Int[np.ndarray, " B"]]:
        """Epoch of a step, and its anchors ``Int[samples_per_step]``."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        if epoch not in self._orders:
            self._orders.clear()
            self._orders[epoch] = self._order(epoch)
        return epoch, self._orders[epoch][batch]

    def _order(self, epoch: int) -> Int[np.ndarray, "_ B"]:
        """``Int[steps_per_epoch, samples_per_step]``"""
        rng = generator(self.seed, epoch, 0, Stream.PLAN)
        wanted = self.steps_per_epoch * self.samples_per_step
        order = np.array([], dtype=np.int64)
        while len(order) < wanted:
            once = rng.permutation(self.anchors)
            grouping = self.batch_grouping
            order = np.concatenate([order, once if grouping is None else grouping.arranged(once, rng)])
        return order[:wanted].reshape(-1, self.samples_per_step)


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
