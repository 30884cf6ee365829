"""The control that keeps everything of a strategy but its information."""

from __future__ import annotations

import numpy as np

from medcl3d.data.manifest import Collection
from medcl3d.errors import ConfigError
from medcl3d.pairs import PairStrategy

# What is no column of the collection: a point's place is shuffled among the points of its sample.
POINT_COLUMNS = ("position_mm",)


def placebo(collection: Collection, strategy: PairStrategy, seed: int) -> Collection:
    """The collection with the strategy's informative columns permuted among scans, once per seed.

    All columns move together, so that their joint distribution stays. ConfigError where the strategy
    has no informative column: it has no placebo.
    """
    if not strategy.informative:
        raise ConfigError(
            "placebo: true: this pair strategy has no informative column to permute; compare it with `augmented_views` instead"
        )
    names = [name for name in strategy.informative if name not in POINT_COLUMNS]
    order = np.random.default_rng([seed, len(collection)]).permutation(len(collection))
    missing = [name for name in names if name not in collection.columns]
    if missing:
        raise ConfigError(f"placebo: the collection has no column {', '.join(missing)}; add it to the manifest or choose another strategy")
    return collection.with_columns({name: collection.columns[name][order] for name in names})


def permutes_points(strategy: PairStrategy) -> bool:
    """True where a placebo has to shuffle the places that points are said to have."""
    return any(name in POINT_COLUMNS for name in strategy.informative)
