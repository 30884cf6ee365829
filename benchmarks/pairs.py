"""Benchmark of pair strategies: samples drawn and loaded per second."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.measure import PATCH, Bench, Table, by, geometric, one_core
from medcl3d.config.field_types import Choice
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.distributed.seeding import Stream, generator
from medcl3d.pairs import PAIRS
from medcl3d.sampling.pair_dataset import PairDataset
from medcl3d.views import VIEWS


def pairs(bench: Bench) -> Table:
    """Every strategy with its defaults, as in the loader: views, crops, augmentation parameters."""
    rows = []
    num = max(1, bench.scale.crops // 2)
    _ = bench.store  # prepare the cohort here, so that its errors are not attributed to a strategy
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

        def draw(
            strategy: Any = strategy, collection: Any = collection, anchors: np.ndarray = anchors
        ) -> None:
            for i, anchor in enumerate(anchors):
                strategy.sample(collection, int(anchor), generator(0, 0, i, Stream.SAMPLE))

        def load(dataset: PairDataset = dataset) -> None:
            dataset[0]

        with one_core():
            seconds = bench.turns(name, {"draw": draw, "load": load})
        drawn, loaded = num / seconds["draw"], num / seconds["load"]
        rows.append(
            (
                name,
                geometric(drawn),
                geometric(loaded),
                geometric(loaded * num_views),
                f"{num_views} views per sample",
            )
        )
    note = (
        f"Crops of {by(PATCH)} voxels, processor time of one core. "
        "Loading a sample: drawing it, reading its crops, drawing its augmentation, making its keys."
    )
    columns = ("strategy", "samples drawn per second", "samples loaded per second", "crops per second", "")
    return Table("Pairs", columns, tuple(rows), note)


def _defaults(name: str) -> dict[str, Any]:
    """The fields of a strategy with their defaults. ConfigError if a field has no default."""
    from medcl3d.config.choices import describe

    if required := [field.name for field in describe(PAIRS, name) if field.default == "required"]:
        raise ConfigError(f"{name} needs {', '.join(required)}")
    parsed = PAIRS.schema(name).validate_json("{}")
    return {field: getattr(parsed, field) for field in type(parsed).model_fields}
