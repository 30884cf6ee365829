"""Which views belong together: one strategy a file.

A strategy answers two questions and never touches a voxel: which views are drawn together (`sample`, over
the collection), and which things of a batch attract, repel or are left alone (`relate`, over their keys).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from medcl3d.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from medcl3d.data.manifest import Collection
    from medcl3d.pairs.anchors import Anchors
    from medcl3d.types import Keys, Relation, ViewSpec

PAIRS = Registry("pair strategy", __name__)


class PairStrategy(Protocol):
    """What every file of this package provides.

    `informative` names the key columns that carry the strategy's information: what a placebo permutes.
    A strategy may set `relates_points = True`: then `relate` also understands the keys of points, and its
    fields `num_points`, `tolerance_mm` and `ignore_mm` hold for dense objectives. One whose samples hold scans
    of several patients sets `crosses_patients = True`: a TorchIO subject cannot feed it.
    """

    informative: ClassVar[tuple[str, ...]]

    def anchors(self, collection: Collection) -> Anchors:
        """What an epoch visits; what was left out, and why."""

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """The views of one sample, on the grid `collection.patch_size`."""

    def relate(self, rows: Keys, cols: Keys, similarity: Tensor | None) -> Relation:
        """How rows and columns relate, for any tile ``[N, M]`` of the things in play."""


def crosses_patients(strategy: PairStrategy) -> bool:
    """Whether one sample may hold scans of several patients."""
    return bool(getattr(strategy, "crosses_patients", False))
