"""Crops at one height of the body attract."""

from dataclasses import dataclass, replace
from typing import ClassVar

from medcl3d.config.field_types import Fraction
from medcl3d.core.geometry import ViewSpec
from medcl3d.core.relation import related
from medcl3d.pairs import PAIRS, StrategyTraits
from medcl3d.pairs.anchors import every_scan
from medcl3d.pairs.boxes import random_box


@PAIRS.register("same_height")
@dataclass(frozen=True, kw_only=True)
class SameHeight:
    """Positives are crops of one scan whose heights differ by at most `tolerance` of the body's height.

    Other crops of that scan are ignored. Source: an example.
    """

    tolerance: Fraction = 0.05
    traits: ClassVar[StrategyTraits] = StrategyTraits()  # no signal column, and therefore no placebo

    def anchors(self, collection):
        return every_scan(collection)

    def sample(self, collection, anchor, rng):
        first, second = (random_box(collection, anchor, rng) for _ in range(2))
        level = (*second.start[:2], first.start[2])
        return ViewSpec(anchor, first), ViewSpec(anchor, replace(second, start=level))

    def relate(self, rows, cols, similarity):
        same_scan = rows.scan[:, None] == cols.scan
        near = (rows.fraction[:, None, 2] - cols.fraction[:, 2]).abs() <= self.tolerance
        return related(rows, cols, same_scan & near, ~same_scan)
