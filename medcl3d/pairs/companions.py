"""Scans that a strategy wants together in a batch, where chance would leave them apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from medcl3d.data.collection import Collection
from medcl3d.pairs import PairStrategy, every_part


@dataclass(frozen=True)
class Companions:
    """Groups of anchors that attract each other.

    together  so many scans of as many patients stand next to each other in a batch
    affinity  a scan -> ``Float[n]``: how strongly each scan of the collection attracts it, 0 where it does not
    patients  ``Int[n]``, of the collection
    """

    together: int
    affinity: Callable[[int], np.ndarray]
    patients: np.ndarray

    def arranged(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The anchors ``Int[n]`` of an epoch in groups of `together`, each visited at least once.

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
    """What a strategy, or the first of its parts that asks for it, wants together; None where chance will do."""
    found = (part.companions(collection) for part in every_part(strategy) if hasattr(part, "companions"))
    return next((companions for companions in found if companions is not None), None)
