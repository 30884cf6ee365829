"""Pairs drawn and loaded in a second."""

from __future__ import annotations

from typing import Any

import numpy as np

from medcl3d.benchmarks.measure import PATCH, Bench, Table, by, geometric, one_core, take_turns
from medcl3d.data.loader import PairDataset
from medcl3d.errors import ConfigError, DataError
from medcl3d.pairs import PAIRS
from medcl3d.registry import Choice
from medcl3d.training.seeding import Stream, generator
from medcl3d.views import VIEWS


def pairs(bench: Bench) -> Table:
    """Every pair strategy with its own defaults, as the loader draws it: views, crops from the memory map, augmentation's parameters."""
    rows = []
    num = max(1, bench.scale.crops // 2)
    _ = bench.store  # a cohort that cannot be made is no strategy's fault
    recipe = VIEWS.build(Choice("mri"))
    for name in PAIRS.names():
        try:
            strategy = PAIRS.build(Choice(name, _defaults(name)))
            dataset = bench.dataset(strategy, recipe, num)
            collection, anchors = dataset.scans.collection, dataset.plan.samples(0)[1]
            num_views = len(strategy.sample(collection, int(anchors[0]), generator(0, 0, 0, Stream.SAMPLE)))
        except (ConfigError, DataError) as error:
            rows.append((name, "-", "-", "-", f"not measured: {str(error).split(';')[0]}"))
            continue

        def draw(strategy: Any = strategy, collection: Any = collection, anchors: np.ndarray = anchors) -> None:
            for i, anchor in enumerate(anchors):
                strategy.sample(collection, int(anchor), generator(0, 0, i, Stream.SAMPLE))

        def load(dataset: PairDataset = dataset) -> None:
            dataset[0]

        with one_core():
            seconds = take_turns({"draw": draw, "load": load}, bench.scale.repeats)
        drawn, loaded = num / seconds["draw"], num / seconds["load"]
        rows.append((name, geometric(drawn), geometric(loaded), geometric(loaded * num_views), f"{num_views} views a sample"))
    note = (
        f"Crops of {by(PATCH)} voxels, processor time of one core. "
        "A sample loaded: drawn, its crops read, its augmentation drawn, its keys made."
    )
    return Table("Pairs", ("strategy", "samples drawn a second", "samples loaded a second", "crops a second", ""), tuple(rows), note)


def _defaults(name: str) -> dict[str, Any]:
    """The fields of a strategy with their defaults. ConfigError where one has none."""
    from medcl3d.config import describe

    if required := [field.name for field in describe(PAIRS, name) if field.default == "required"]:
        raise ConfigError(f"{name} needs {', '.join(required)}")
    parsed = PAIRS.schema(name).validate_json("{}")
    return {field: getattr(parsed, field) for field in type(parsed).model_fields}
