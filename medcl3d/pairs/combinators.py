"""Combinators of strategies: sum and product."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from medcl3d.config.choices import choice_in_list
from medcl3d.config.field_types import Choice, Positive
from medcl3d.core.collection import Collection
from medcl3d.core.errors import ConfigError, inside
from medcl3d.core.geometry import ViewSpec
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation, related
from medcl3d.pairs import (
    PAIRS,
    PairStrategy,
    StrategyTraits,
    all_parts,
    crosses_patients,
    link,
    needs_features,
    relates_points,
    traits_of,
)
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.exclude import Exclude
from medcl3d.pairs.traits import num_points_of, queue_size

Part = choice_in_list(PAIRS)


def _built(name: str, parts: Sequence[Choice]) -> tuple[PairStrategy, ...]:
    """The parts of the composed strategy `name`."""
    found: list[PairStrategy] = []
    for number, part in enumerate(parts):
        with inside(name, "parts", number):
            found.append(PAIRS.build(part))
            if any(traits_of(inner).budget_weight for inner in all_parts(found[-1])):
                raise ConfigError(
                    problem=f"{part.name} sets budgets of pairs, which a {name} cannot combine",
                    remedy="use it alone or in exclude, or set `across: decay`",
                )
    inner_traits = [traits_of(inner) for part in found for inner in all_parts(part)]
    if len({traits.supervoxel_mm for traits in inner_traits if traits.reads_regions}) > 1:
        raise ConfigError(
            problem=f"the parts of a {name} have different regions, and a point has one",
            remedy="give `regions` and `supervoxel_mm` the same values in all parts",
        )
    return tuple(found)


def _relates_points(parts: Sequence[PairStrategy]) -> bool:
    """Whether a combination relates points: all its parts do."""
    return all(map(relates_points, parts))


def _shared_anchors(name: str, parts: Sequence[PairStrategy], collection: Collection) -> Anchors:
    """The anchors that all parts of the composed strategy `name` have in common."""
    found: list[Anchors] = []
    for number, part in enumerate(parts):
        with inside(name, "parts", number):
            found.append(part.anchors(collection))
    ids = reduce(np.intersect1d, (anchors.ids for anchors in found))
    left_out = sum((anchors.left_out for anchors in found), Counter[str]())
    notes = tuple(dict.fromkeys(note for anchors in found for note in anchors.notes))
    remedy = "choose parts that can start from the same scans"
    return Anchors(ids, left_out, notes).require("composed strategy", remedy)


def _signal_columns(parts: Sequence[PairStrategy]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for part in parts for name in traits_of(part).signal_columns))


def _linked(
    parts: Sequence[PairStrategy], rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"]
) -> tuple[Keys, Keys]:
    """Prefix each part's linked columns with its number, since two parts may link columns of one name."""
    found = [link(part, rows, cols, similarity) for part in parts]

    def numbered(keys: Keys, of_parts: Sequence[Keys]) -> Keys:
        new = {
            f"{i}/{name}": column
            for i, part in enumerate(of_parts)
            for name, column in part.linked.items()
            if name not in keys.linked
        }
        return replace(keys, linked={**keys.linked, **new})

    return numbered(rows, [row for row, _ in found]), numbered(cols, [col for _, col in found])


def _relations(
    parts: Sequence[PairStrategy], rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None
) -> list[Relation]:
    def of_part(keys: Keys, number: int) -> Keys:
        prefix = f"{number}/"
        own = {name.removeprefix(prefix): c for name, c in keys.linked.items() if name.startswith(prefix)}
        return replace(keys, linked={**keys.linked, **own})

    return [part.relate(of_part(rows, i), of_part(cols, i), similarity) for i, part in enumerate(parts)]


@PAIRS.register("sum")
@dataclass(frozen=True, kw_only=True)
class Sum:
    """Each sample is drawn by one of the parts; P = sum w P, M = sum w M, with weights that sum to 1.

    parts    strategies, each as `name` or `name: {field: value}`
    weights  probabilities of the parts, up to a factor (default: equal)

    It relates points if all parts do.
    """

    parts: tuple[Part, ...]  # type: ignore[valid-type]  # of the registry
    weights: tuple[Positive, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.parts) < 2:
            raise ConfigError("parts", len(self.parts), "strategies", "a sum has two or more", colon=False)
        if self.weights is not None and len(self.weights) != len(self.parts):
            raise ConfigError(
                problem=f"{len(self.parts)} parts but {len(self.weights)} weights",
                remedy="give one weight per part",
            )

    @cached_property
    def strategies(self) -> tuple[PairStrategy, ...]:
        """The parts, built."""
        return _built("sum", self.parts)

    @cached_property
    def probabilities(self) -> Float64[np.ndarray, " _"]:
        """``Float[parts]``, the normalised weights."""
        weights = np.array(self.weights or [1.0] * len(self.parts))
        probabilities: np.ndarray = weights / weights.sum()
        return probabilities

    @property
    def traits(self) -> StrategyTraits:
        """The traits: the signal columns of all parts."""
        return StrategyTraits(
            signal_columns=_signal_columns(self.strategies),
            relates_points=_relates_points(self.strategies),
            needs_features=any(needs_features(part) for part in self.strategies),
        )

    @property
    def num_points(self) -> int:
        """The largest of the parts."""
        return max(map(num_points_of, self.strategies))

    def anchors(self, collection: Collection) -> Anchors:
        """Scans that are anchors of every part. ConfigError: samples of the parts have other views."""
        anchors = _shared_anchors("sum", self.strategies, collection)
        rng, first = np.random.default_rng(0), int(anchors.ids[0])
        roles = [[view.role for view in part.sample(collection, first, rng)] for part in self.strategies]
        for number, found in enumerate(roles):
            if found != roles[0]:
                raise ConfigError(
                    problem=f"part {number} draws views {', '.join(found)}, and part 0 {', '.join(roles[0])}",
                    remedy="choose parts with the same views: the batches of all ranks have one size",
                    place="sum",
                )
        return anchors

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """The views of one part, chosen with the weights as probabilities."""
        part = self.strategies[int(rng.choice(len(self.parts), p=self.probabilities))]
        return part.sample(collection, anchor, rng)

    def link(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"]) -> tuple[Keys, Keys]:
        """Link the columns of all parts."""
        return _linked(self.strategies, rows, cols, similarity)

    def relate(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """The weighted mean of the parts' relations."""
        relations = _relations(self.strategies, rows, cols, similarity)
        positive = sum(float(w) * r.positive for w, r in zip(self.probabilities, relations, strict=True))
        negative = sum(float(w) * r.negative for w, r in zip(self.probabilities, relations, strict=True))
        return Relation(torch.as_tensor(positive).clamp(max=1), torch.as_tensor(negative))


@PAIRS.register("product")
@dataclass(frozen=True, kw_only=True)
class Product:
    """The first part draws the views; P = product of P, M = 1 - P. Pairs that any part ignores are ignored.

    parts  strategies, each as `name` or `name: {field: value}`

    It relates points if all parts do.
    """

    parts: tuple[Part, ...]  # type: ignore[valid-type]  # of the registry

    def __post_init__(self) -> None:
        if len(self.parts) < 2:
            raise ConfigError(
                "parts", len(self.parts), "strategies", "a product has two or more", colon=False
            )
        for inner in (inner for part in self.strategies[1:] for inner in all_parts(part)):
            if (on_missing := traits_of(inner).on_missing) in ("drop", "error"):
                raise ConfigError(
                    problem=f"on_missing: {on_missing} selects anchors, which only the first part does",
                    remedy="put that part first, with `inner` for the views, or remove on_missing",
                )
        if queue_size(self):
            raise ConfigError(
                problem="a part has an embedding queue, and only its nearest neighbours would repel",
                remedy="make the product the inner strategy of nearest_neighbours",
            )
        for part in self.strategies:
            if "positive" not in traits_of(part).signal_weights and not isinstance(part, Exclude):
                raise ConfigError(
                    problem=f"{type(part).__name__} only sets M, and the M of a product is 1 - P",
                    remedy="leave this part out, or make the product its inner strategy if it has one",
                )

    @cached_property
    def strategies(self) -> tuple[PairStrategy, ...]:
        """The parts, built."""
        return _built("product", self.parts)

    @property
    def traits(self) -> StrategyTraits:
        """The traits: the signal columns of all parts; the first one draws the views."""
        return StrategyTraits(
            signal_columns=_signal_columns(self.strategies),
            crosses_patients=crosses_patients(self.strategies[0]),
            relates_points=_relates_points(self.strategies),
            needs_features=any(needs_features(part) for part in self.strategies),
        )

    @property
    def num_points(self) -> int:
        """The largest of the parts."""
        return max(map(num_points_of, self.strategies))

    def anchors(self, collection: Collection) -> Anchors:
        """The anchors of the first part."""
        with inside("product", "parts", 0):
            return self.strategies[0].anchors(collection)

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """The views of the first part."""
        return self.strategies[0].sample(collection, anchor, rng)

    def link(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"]) -> tuple[Keys, Keys]:
        """Link the columns of all parts."""
        return _linked(self.strategies, rows, cols, similarity)

    def relate(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """The product of the parts' positive weights."""
        relations = _relations(self.strategies, rows, cols, similarity)
        positive = reduce(torch.mul, (r.positive for r in relations))
        ignored = reduce(torch.logical_or, ((r.positive == 0) & (r.negative == 0) for r in relations))
        return related(rows, cols, positive, (1 - positive) * ~ignored)
