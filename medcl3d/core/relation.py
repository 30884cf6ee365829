"""Relations: which items attract, which repel, which pairs are ignored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from medcl3d.core.equal_pairs import Pairs, equal_pairs
from medcl3d.core.keys import Keys


@dataclass(frozen=True)
class Relation:
    """How rows and columns relate: attracted, repelled, ignored.

    positive  ``Float[N, M]`` in [0, 1], attraction P
    negative  ``Float[N, M]`` >= 0, repulsion M
    budget    ``Float[N, M]`` >= 0, the cosine distance up to which a pair may differ without a loss; NaN for
              pairs without a budget (None: no pair has one). P = M = 0 for pairs with a budget
    listed    the pairs that do not only repel, if the relation was made from their list
    """

    positive: Float[Tensor, "N M"]
    negative: Float[Tensor, "N M"]
    budget: Float[Tensor, "N M"] | None = None
    listed: ListedPairs | None = field(default=None, init=False)  # so that a changed copy has none

    @staticmethod
    def of(listed: ListedPairs) -> Relation:
        """The relation of listed pairs. P and M of all pairs are made when they are read."""
        relation = object.__new__(Relation)
        relation.__dict__["listed"] = listed
        return relation

    if not TYPE_CHECKING:  # else every name would pass

        def __getattr__(self, name):
            listed = self.__dict__.get("listed")
            if listed is None or name not in ("positive", "negative"):
                raise AttributeError(f"Relation has no {name}")
            made = torch.zeros(listed.shape) if name == "positive" else torch.ones(listed.shape)
            made.numpy()[listed.attract] = float(name == "positive")
            if name == "negative":
                made.numpy()[listed.ignored] = 0
            self.__dict__[name] = made
            return made


@dataclass(frozen=True)
class ListedPairs:
    """The pairs of a relation that attract (P = 1, M = 0) or are ignored; all others repel (P = 0, M = 1).

    A relation on a CPU with few of them has it, since their list is faster to work with.
    """

    shape: tuple[int, int]
    attract: Pairs
    ignored: Pairs


def related(
    rows: Keys, cols: Keys, positive: Shaped[Tensor, "N M"], negative: Shaped[Tensor, "N M"] | None = None
) -> Relation:
    """A relation in which nothing is related to itself; `negative` defaults to 1 - positive.

    positive, negative: ``[N, M]``, bool or float.
    """
    other = ~rows.same_item(cols)
    positive = _weights(positive, other)
    if negative is None:  # (1 - positive) * other, since nothing is its own positive
        return Relation(positive, _float32(other).sub_(positive))
    return Relation(positive, _weights(negative, other))


def related_within(rows: Keys, cols: Keys, own: Int64[Tensor, " N"], others: Int64[Tensor, " M"]) -> Relation:
    """`related` with P = 1 for pairs of one value in a column, such as `sample`."""
    pairs = equal_pairs(own, others)
    if pairs is None:
        return related(rows, cols, own[:, None] == others)
    return related_at(rows, cols, pairs, np.ones(len(pairs[0]), dtype=bool))


def related_at(
    rows: Keys,
    cols: Keys,
    pairs: Pairs,
    positive: Bool[np.ndarray, " K"],
    ignored: Bool[np.ndarray, " K"] | None = None,
) -> Relation:
    """`related`, on a CPU, for few pairs that attract or are ignored; all others repel.

    pairs: among them those of all items with themselves; ignored: besides these (None: no pair is)
    """
    row, col = pairs
    other = rows.view.numpy()[row] != cols.view.numpy()[col]
    other |= rows.point.numpy()[row] != cols.point.numpy()[col]
    other |= rows.sample.numpy()[row] != cols.sample.numpy()[col]
    attracts, left = positive & other, ~other if ignored is None else ignored & ~positive | ~other
    shape = len(rows), len(cols)
    listed = ListedPairs(shape, (row[attracts], col[attracts]), (row[left], col[left]))
    return Relation.of(listed)


def _weights(weights: Shaped[Tensor, "N M"], other: Bool[Tensor, "N M"]) -> Float[Tensor, "N M"]:
    """Bool or float weights as float32, 0 if a pair is not of two items."""
    return _float32(weights & other) if weights.dtype == torch.bool else weights.float() * _float32(other)


def _float32(mask: Bool[Tensor, "N M"]) -> Float[Tensor, "N M"]:
    """0 and 1 as float32. PyTorch converts bytes several times faster than bool."""
    return mask.view(torch.uint8).float()


Relate = Callable[[Keys, Keys, "Tensor | None"], Relation]
