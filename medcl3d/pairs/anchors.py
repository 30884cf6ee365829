"""Anchors of an epoch, and the reasons for which scans are left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from medcl3d.core.collection import Collection
from medcl3d.core.errors import DataError


@dataclass(frozen=True)
class Anchors:
    """Scans that start a sample.

    ids       ``Int[n]`` scans; each starts one sample
    left_out  reason -> number of scans left out for it
    notes     lines to report about the anchors that remain
    """

    ids: Int[np.ndarray, " m"]
    left_out: Counter[str]
    notes: tuple[str, ...] = ()

    def require(self, strategy: str, remedy: str) -> Anchors:
        """Return these anchors; DataError with the counts and a remedy if there are none."""
        if len(self.ids):
            return self
        counts = "; ".join(f"{count} left out: {reason}" for reason, count in self.left_out.items())
        cause = counts or "the collection is empty"
        raise DataError(f"{strategy}: no scan can be an anchor ({cause}); {remedy}")


def every_scan(collection: Collection) -> Anchors:
    """All scans of the collection."""
    return Anchors(np.arange(len(collection)), Counter())
