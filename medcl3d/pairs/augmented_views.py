"""Views of one crop that differ only in augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from medcl3d.config.field_types import Fraction
from medcl3d.core.collection import Collection
from medcl3d.core.geometry import Box, ViewSpec
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation, related_within
from medcl3d.pairs import PAIRS, StrategyTraits
from medcl3d.pairs.anchors import Anchors, every_scan
from medcl3d.pairs.boxes import random_box


@PAIRS.register("augmented_views")
@dataclass(frozen=True, kw_only=True)
class AugmentedViews:
    """Positives are differently augmented views of one crop.

    num_views     augmented views of a crop
    resized_crop  each view is a random part of the crop, resized to the crop's grid, as in SimCLR
    min_volume    smallest part of the crop's volume, with resized_crop

    Source: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020,
    section 3.
    """

    num_views: Annotated[int, Field(ge=2)] = 2
    resized_crop: bool = False
    min_volume: Fraction = 0.3

    traits: ClassVar[StrategyTraits] = StrategyTraits(constant_across=("sample",))

    def anchors(self, collection: Collection) -> Anchors:
        """Every scan."""
        return every_scan(collection)

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """One crop inside the body of scan `anchor`, `num_views` times."""
        box = random_box(collection, anchor, rng)
        if not self.resized_crop:
            return (ViewSpec(anchor, box),) * self.num_views
        return tuple(
            ViewSpec(anchor, part_of(box, self.min_volume, rng), shape=collection.patch_size)
            for _ in range(self.num_views)
        )

    def relate(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """P = 1 within the sample, M = 1 - P."""
        return related_within(rows, cols, rows.sample, cols.sample)


def part_of(box: Box, min_volume: float, rng: np.random.Generator) -> Box:
    """A box inside `box` with the same proportions and a volume uniform in [min_volume, 1] of its volume."""
    edge = rng.uniform(min_volume, 1.0) ** (1 / 3)
    size = [max(1, round(edge * n)) for n in box.size]
    start = [a + int(rng.integers(n - m + 1)) for a, n, m in zip(box.start, box.size, size, strict=True)]
    return Box((start[0], start[1], start[2]), (size[0], size[1], size[2]))
