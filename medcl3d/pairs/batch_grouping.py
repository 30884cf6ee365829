"""Batch grouping: samples that a strategy needs in one batch and that random order would separate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, Int

from medcl3d.core.collection import Collection
from medcl3d.pairs import PairStrategy, all_parts, traits_of


@dataclass(frozen=True)
class BatchGrouping:
    """Batch grouping: groups of anchors that attract each other, and of samples that start from one anchor.

    group_size        number of scans, each of another patient, that are adjacent in a batch
    affinity          scan -> ``Float[n]``: how strongly each scan of the collection attracts it, 0 if it does
                      not
    patients          ``Int[n]`` patient of each scan of the collection
    samples_per_scan  number of samples of each scan that are adjacent in a batch
    """

    group_size: int
    affinity: Callable[[int], Float64[np.ndarray, " n"]]
    patients: Int[np.ndarray, " n"]
    samples_per_scan: int = 1

    @property
    def samples_per_group(self) -> int:
        """Samples that must share a batch."""
        return self.group_size * self.samples_per_scan

    def arranged(self, order: Int[np.ndarray, " m"], rng: np.random.Generator) -> Int[np.ndarray, " _"]:
        """Arrange an epoch's anchors ``Int[n]`` in groups, each at least `samples_per_scan` times."""
        return np.repeat(order if self.group_size == 1 else self._groups(order, rng), self.samples_per_scan)

    def _groups(self, order: Int[np.ndarray, " m"], rng: np.random.Generator) -> Int[np.ndarray, " _"]:
        """Arrange the anchors in groups of `group_size`, each anchor at least once.

        A group is filled with scans that attract its first anchor, drawn with probabilities proportional to
        their affinity: first scans not yet used, then used ones; without any, the next unused anchor.
        """
        unused = np.zeros(len(self.patients), dtype=bool)
        unused[order] = True
        anchors = np.flatnonzero(unused)
        groups: list[int] = []
        visits = order.tolist()
        for position, first in enumerate(visits):
            if not unused[first]:
                continue
            group = [first]
            unused[first] = False
            affinity = np.zeros(len(self.patients))
            affinity[anchors] = self.affinity(first)[anchors]
            while len(group) < self.group_size:
                affinity[self.patients == self.patients[group[-1]]] = 0
                fresh = affinity * unused
                weights = fresh if fresh.any() else affinity
                if weights.any():
                    chosen = int(rng.choice(len(weights), p=weights / weights.sum()))
                else:
                    later = (visits[i] for i in range(position, len(visits)))
                    chosen = next((scan for scan in later if unused[scan]), first)
                group.append(chosen)
                unused[chosen] = False
            groups += group
        return np.array(groups, dtype=np.int64)


def batch_grouping_of(strategy: PairStrategy, collection: Collection) -> BatchGrouping | None:
    """The batch grouping of a strategy; None if it has none.

    Groups are those of the strategy, or of its first inner strategy that has any. `samples_per_scan` is the
    largest of all inner strategies.
    """
    traits = [traits_of(part) for part in all_parts(strategy)]
    found = (of(collection) for one in traits if (of := one.batch_grouping) is not None)
    grouping = next((one for one in found if one is not None), None)
    samples_per_scan = max(one.samples_per_scan for one in traits)
    if samples_per_scan == 1:
        return grouping
    single_scans = BatchGrouping(1, lambda scan: np.zeros(len(collection)), collection.columns["patient"])
    return replace(grouping or single_scans, samples_per_scan=samples_per_scan)
