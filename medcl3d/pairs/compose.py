"""Strategies made of strategies: sums, products, and negatives taken away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property, reduce

import numpy as np
import torch
from torch import Tensor

from medcl3d.config import part_of
from medcl3d.data.manifest import Collection
from medcl3d.errors import ConfigError, DataError
from medcl3d.pairs import PAIRS, PairStrategy, crosses_patients
from medcl3d.pairs.anchors import Anchors
from medcl3d.registry import Positive
from medcl3d.types import Keys, Relation, ViewSpec, related

Part = part_of(PAIRS)


def _of_every_part(parts: Sequence[PairStrategy], collection: Collection) -> Anchors:
    """The anchors that every part can start from."""
    found = [part.anchors(collection) for part in parts]
    ids = reduce(np.intersect1d, (anchors.ids for anchors in found))
    left_out = sum((anchors.left_out for anchors in found), Counter[str]())
    return Anchors(ids, left_out).require("composed strategy", "choose parts that can start from the same scans")


def _informative(parts: Sequence[PairStrategy]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for part in parts for name in part.informative))


@PAIRS.register("sum")
@dataclass(frozen=True, kw_only=True)
class Sum:
    """Each sample is drawn by one of the parts; P = sum w P, M = sum w M, with the weights summing to 1.

    parts    strategies, each as `name` or `name: {field: value}`
    weights  the parts' probabilities, up to a factor (default: all alike)
    """

    parts: tuple[Part, ...]  # type: ignore[valid-type]
    weights: tuple[Positive, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.parts) < 2:
            raise ConfigError(f"sum: parts = {len(self.parts)} strategies; a sum has two or more")
        if self.weights is not None and len(self.weights) != len(self.parts):
            raise ConfigError(f"sum: there are {len(self.parts)} parts and {len(self.weights)} weights; give each part one")

    @cached_property
    def strategies(self) -> tuple[PairStrategy, ...]:
        """The parts."""
        return tuple(PAIRS.build(part) for part in self.parts)

    @cached_property
    def shares(self) -> np.ndarray:
        """``Float[parts]`` that sum to 1."""
        weights = np.array(self.weights or [1.0] * len(self.parts))
        shares: np.ndarray = weights / weights.sum()
        return shares

    @property
    def informative(self) -> tuple[str, ...]:
        """What any of the parts knows."""
        return _informative(self.strategies)

    @property
    def crosses_patients(self) -> bool:
        """As those that draw."""
        return any(crosses_patients(part) for part in self.strategies)

    def anchors(self, collection: Collection) -> Anchors:
        """Scans that every part can start from."""
        return _of_every_part(self.strategies, collection)

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """The views of one part, drawn with the weights as probabilities."""
        part = self.strategies[int(rng.choice(len(self.parts), p=self.shares))]
        return part.sample(collection, anchor, rng)

    def relate(self, rows: Keys, cols: Keys, similarity: Tensor | None) -> Relation:
        """The weighted mean of the parts' relations."""
        relations = [part.relate(rows, cols, similarity) for part in self.strategies]
        positive = sum(float(w) * r.positive for w, r in zip(self.shares, relations, strict=True))
        negative = sum(float(w) * r.negative for w, r in zip(self.shares, relations, strict=True))
        return Relation(torch.as_tensor(positive).clamp(max=1), torch.as_tensor(negative))


@PAIRS.register("product")
@dataclass(frozen=True, kw_only=True)
class Product:
    """The first part draws; P = product of P, M = 1 - P, and what any part leaves alone is left alone.

    parts  strategies, each as `name` or `name: {field: value}`
    """

    parts: tuple[Part, ...]  # type: ignore[valid-type]

    def __post_init__(self) -> None:
        if len(self.parts) < 2:
            raise ConfigError(f"product: parts = {len(self.parts)} strategies; a product has two or more")

    @cached_property
    def strategies(self) -> tuple[PairStrategy, ...]:
        """The parts."""
        return tuple(PAIRS.build(part) for part in self.parts)

    @property
    def informative(self) -> tuple[str, ...]:
        """What any of the parts knows."""
        return _informative(self.strategies)

    @property
    def crosses_patients(self) -> bool:
        """As those that draw."""
        return crosses_patients(self.strategies[0])

    def anchors(self, collection: Collection) -> Anchors:
        """Where the first part can start."""
        return self.strategies[0].anchors(collection)

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """The views of the first part."""
        return self.strategies[0].sample(collection, anchor, rng)

    def relate(self, rows: Keys, cols: Keys, similarity: Tensor | None) -> Relation:
        """The product of the parts' attractions."""
        relations = [part.relate(rows, cols, similarity) for part in self.strategies]
        positive = reduce(torch.mul, (r.positive for r in relations))
        alone = reduce(torch.logical_or, ((r.positive == 0) & (r.negative == 0) for r in relations))
        return related(rows, cols, positive, (1 - positive) * ~alone)


@PAIRS.register("exclude")
@dataclass(frozen=True, kw_only=True)
class Exclude:
    """No repulsion between things that share a column: M = 0 for the same patient, site, ...; P stays.

    inner  the strategy whose negatives are thinned
    by     a column of the manifest (patient, modality, site, ...); what lacks a value is excluded from nothing

    The control, as many negatives removed at random, is its placebo: the column permuted among scans.
    Source: false negatives of one patient or site, as in MMCL and GLCL (Chaitanya et al., NeurIPS 2020).
    """

    inner: Part  # type: ignore[valid-type]
    by: str = "patient"

    @cached_property
    def strategy(self) -> PairStrategy:
        """The inner strategy."""
        inner: PairStrategy = PAIRS.build(self.inner)
        return inner

    @property
    def informative(self) -> tuple[str, ...]:
        """The column alone: a placebo leaves the inner strategy as it is."""
        return (self.by,)

    @property
    def crosses_patients(self) -> bool:
        """As those that draw."""
        return crosses_patients(self.strategy)

    def anchors(self, collection: Collection) -> Anchors:
        """Those of the inner strategy. DataError where there is no such column."""
        if self.by not in collection.columns:
            raise DataError(f"exclude: by = {self.by}: the manifest has no such column; there are {', '.join(collection.columns)}")
        return self.strategy.anchors(collection)

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """The views of the inner strategy."""
        return self.strategy.sample(collection, anchor, rng)

    def relate(self, rows: Keys, cols: Keys, similarity: Tensor | None) -> Relation:
        """The inner relation without repulsion within a value of the column."""
        relation = self.strategy.relate(rows, cols, similarity)
        first, second = (_column(keys, self.by) for keys in (rows, cols))
        known = ~(torch.isnan(first) | (first < 0))
        same = (first[:, None] == second) & known[:, None]
        return Relation(relation.positive, relation.negative * ~same, relation.budget)


def _column(keys: Keys, name: str) -> Tensor:
    """A column of the keys as numbers, codes of ids or metadata."""
    own = {field.name for field in fields(Keys)} - {"metadata", "linked"}
    return (getattr(keys, name) if name in own else keys.metadata[name]).double()
