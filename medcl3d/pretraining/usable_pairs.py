"""The pair strategies that the scans of a store can train, by assembling a pretraining with each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medcl3d.config.choices import describe
from medcl3d.config.loading import load
from medcl3d.core.collection import Collection
from medcl3d.core.columns import KNOWN_COLUMNS
from medcl3d.core.errors import UserError
from medcl3d.pairs import PAIRS, PairStrategy, relates_points
from medcl3d.pairs.metadata_similarity import is_number
from medcl3d.pretraining.compatibility import fields_without_effect
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.parts import Pretraining, assemble
from medcl3d.store.store import Store

OF_POINTS: dict[str, Any] = {"objective": {"dense": {}}}
OF_CROPS: dict[str, Any] = {"objective": {"simclr": {}}, "train.lr": 5.0e-4}
"""Fields that train a strategy of points, or of crops, beside those of the packaged `pretrain/mine`."""
MOST_CLASSES = 20
"""A column of numbers or words with more different values is not one of classes."""


@dataclass(frozen=True)
class PairsOnStore:
    """A pair strategy on the scans of a store.

    name     of the strategy
    fields   that differ from those of the configuration: pairs, objective, learning rate
    parts    the pretraining with it; None if the scans cannot train it
    problem  what it lacks, "" if nothing
    """

    name: str
    fields: Mapping[str, Any]
    parts: Pretraining | None
    problem: str = ""

    @property
    def notes(self) -> list[str]:
        """Scans that are left out, and warnings."""
        if self.parts is None:
            return [self.problem]
        anchors = self.parts.anchors
        left = [f"{number} scans left out: {reason}" for reason, number in anchors.left_out.items()]
        warnings = [*anchors.notes, *fields_without_effect(self.parts)]
        return [*left, *(_without_name(line.removeprefix("warning: "), self.name) for line in warnings)]


def combinators() -> list[str]:
    """The strategies that combine others, which must be named: they require inner strategies."""
    return [name for name in PAIRS.names() if any("pairs" in kind for kind in _required(name).values())]


def usable_pairs(store: Store, base: Path, common: Mapping[str, Any]) -> list[PairsOnStore]:
    """Every strategy but combinators, usable or with what it lacks, in the order of their names.

    base, common: a configuration of a pretraining, and the fields that are set in it for any strategy.
    A strategy of columns uses those of the manifest.
    """
    names = set(combinators())
    return [_tried(name, store, base, common) for name in PAIRS.names() if name not in names]


def _tried(name: str, store: Store, base: Path, common: Mapping[str, Any]) -> PairsOnStore:
    """One strategy, with the first of its possible columns that the scans can train."""
    first: PairsOnStore | None = None
    for fields in _possible_fields(name, store.collection):
        own: dict[str, Any] = {"pairs": {name: fields}, **OF_CROPS}
        try:
            config = load(base, {**common, **own}, PretrainConfig)
            strategy: PairStrategy = PAIRS.build(config.pairs)
            if relates_points(strategy):
                own = {"pairs": {name: fields}, **OF_POINTS}
                config = load(base, {**common, **own}, PretrainConfig)
            return PairsOnStore(name, own, assemble(config, store))
        except UserError as error:
            error.line = ""
            first = first or PairsOnStore(name, own, None, _without_name(str(error), name))
    if first is None:
        problem = "no column of metadata with different values; add one to the manifest, such as age or sex"
        return PairsOnStore(name, {}, None, problem)
    return first


def _possible_fields(name: str, collection: Collection) -> Iterator[dict[str, Any]]:
    """Fields to try, most natural first: the columns of the manifest for a strategy that needs some."""
    if "columns" in _required(name):
        if kernels := kernels_of(collection):
            yield {"columns": kernels}
        return
    yield {}
    if any(field.name == "column" for field in describe(PAIRS, name)):
        yield from ({"column": column} for column in class_columns(collection))


def _required(name: str) -> dict[str, str]:
    """The fields without a default of a strategy: name -> type in words."""
    return {field.name: field.type for field in describe(PAIRS, name) if field.default == "required"}


def kernels_of(collection: Collection) -> dict[str, float | str]:
    """Columns of metadata with different values, each with a kernel.

    `equal` for classes; for other numbers half of their standard deviation.
    """
    kernels: dict[str, float | str] = {}
    for name in _metadata(collection):
        values = collection.column(name)
        values = values[np.isfinite(values)]
        if 2 <= len(np.unique(values)) <= MOST_CLASSES:
            kernels[name] = "equal"
        elif len(values) and is_number(collection, name) and values.std() > 0:
            kernels[name] = float(f"{values.std() / 2:.2g}")
    return kernels


def number_columns(collection: Collection) -> list[str]:
    """Columns of metadata that hold numbers and are not classes."""
    return [name for name, kernel in kernels_of(collection).items() if kernel != "equal"]


def class_columns(collection: Collection) -> list[str]:
    """Columns with a class of each patient: `class`, then those of metadata."""
    names = [name for name, kernel in kernels_of(collection).items() if kernel == "equal"]
    table = collection.table
    one_class = [name for name in names if (table.groupby("patient")[name].nunique() <= 1).all()]
    return ["class", *one_class] if "class" in collection.columns else one_class


def varying_columns(collection: Collection) -> list[str]:
    """Columns in which scans of a patient differ: session and modality, then those of metadata."""
    table = collection.table
    names = ["session", "modality", *_metadata(collection)]
    return [name for name in names if name in table and (table.groupby("patient")[name].nunique() > 1).any()]


def _metadata(collection: Collection) -> list[str]:
    return [name for name in collection.columns if name not in KNOWN_COLUMNS]


def _without_name(message: str, name: str) -> str:
    """A message without the name of the strategy in front, which a table shows beside it."""
    return message.removeprefix(f"pairs.{name}: ").removeprefix(f"{name}: ")
