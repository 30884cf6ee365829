"""Batch grouping: samples that a strategy needs in one batch, and that chance would leave apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from medcl3d.data.collection import Collection
from medcl3d.pairs import PairStrategy, every_part


@dataclass(frozen=True)
class Companions:
    """Groups of anchors that attract each other, and of samples that start from one anchor.

    together          so many scans of as many patients stand next to each other in a batch
    affinity          a scan -> ``Float[n]``: how strongly each scan of the collection attracts it, 0 where it does not
    patients          ``Int[n]``, of the collection
    samples_per_scan  so many samples of each scan stand next to each other in a batch
    """

    together: int
    affinity: Callable[[int], np.ndarray]
    patients: np.ndarray
    samples_per_scan: int = 1

    @property
    def group_size(self) -> int:
        """Samples that must share a batch."""
        return self.together * self.samples_per_scan

    def arranged(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The anchors ``Int[n]`` of an epoch in groups of `group_size`, each visited `samples_per_scan` times or more."""
        return np.repeat(order if self.together == 1 else self._groups(order, rng), self.samples_per_scan)

    def _groups(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The anchors in groups of `together`, each visited at least once.

        A group is filled with companions of its first anchor, drawn with their affinity as probability: those not
        yet visited, then others, and where there are none with what comes next.
        """
        waiting = np.zeros(len(self.patients), dtype=bool)
        waiting[order] = True
        anchors = np.flatnonzero(waiting)
        groups: list[int] = []
        visits = order.tolist()
        for place, first in enumerate(visits):
            if not waiting[first]:
                continue
            group = [first]
            waiting[first] = False
            affinity = np.zeros(len(self.patients))
            affinity[anchors] = self.affinity(first)[anchors]
            while len(group) < self.together:
                affinity[self.patients == self.patients[group[-1]]] = 0
                fresh = affinity * waiting
                weights = fresh if fresh.any() else affinity
                if weights.any():
                    chosen = int(rng.choice(len(weights), p=weights / weights.sum()))
                else:
                    chosen = next((visits[later] for later in range(place, len(visits)) if waiting[visits[later]]), first)
                group.append(chosen)
                waiting[chosen] = False
            groups += group
        return np.array(groups, dtype=np.int64)


def companions_of(strategy: PairStrategy, collection: Collection) -> Companions | None:
    """The batch grouping of a strategy; None if it has none.

    Companions are those of the strategy, or of the first of its parts that has some. `samples_per_scan` is the largest of all parts.
    """
    found = (part.companions(collection) for part in every_part(strategy) if hasattr(part, "companions"))
    companions = next((one for one in found if one is not None), None)
    samples_per_scan = max(getattr(part, "samples_per_scan", 1) for part in every_part(strategy))
    if samples_per_scan == 1:
        return companions
    alone = Companions(1, lambda scan: np.zeros(len(collection)), collection.columns["patient"])
    return replace(companions or alone, samples_per_scan=samples_per_scan)
