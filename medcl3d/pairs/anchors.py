"""What an epoch visits, and what it cannot visit and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from medcl3d.data.collection import Collection
from medcl3d.errors import DataError


@dataclass(frozen=True)
class Anchors:
    """What starts a sample.

    ids       ``Int[n]``, each starts one sample
    left_out  reason -> how many were left out for it
    notes     lines for a person on those that are not left out
    """

    ids: np.ndarray
    left_out: Counter[str]
    notes: tuple[str, ...] = ()

    def require(self, strategy: str, remedy: str) -> Anchors:
        """These anchors, or a DataError that says what was counted and what would do."""
        if len(self.ids):
            return self
        counts = "; ".join(f"{count} left out: {reason}" for reason, count in self.left_out.items())
        raise DataError(f"{strategy}: no scan can be an anchor ({counts or 'the collection is empty'}); {remedy}")


def every_scan(collection: Collection) -> Anchors:
    """All scans of the collection."""
    return Anchors(np.arange(len(collection)), Counter())
