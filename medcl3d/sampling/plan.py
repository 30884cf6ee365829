"""The anchors of every step, as a function of seed and epoch."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

from medcl3d.distributed.seeding import Stream, generator
from medcl3d.pairs.batch_grouping import BatchGrouping


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
