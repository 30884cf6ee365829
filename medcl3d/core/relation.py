"""Relations: which items attract, which repel, which pairs are ignored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from medcl3d.core.keys import Keys


@dataclass(frozen=True)
class Relation:
    """How rows and columns relate: attracted, repelled, ignored.

    positive  ``Float[N, M]`` in [0, 1], attraction P
    negative  ``Float[N, M]`` >= 0, repulsion M
    budget    ``Float[N, M]`` >= 0, the cosine distance up to which a pair may differ without a loss; NaN for
              pairs without a budget (None: no pair has one). P = M = 0 for pairs with a budget
    """

    positive: Float[Tensor, "N M"]
    negative: Float[Tensor, "N M"]
    budget: Float[Tensor, "N M"] | None = None


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


def _weights(weights: Shaped[Tensor, "N M"], other: Bool[Tensor, "N M"]) -> Float[Tensor, "N M"]:
    """Bool or float weights as float32, 0 if a pair is not of two items."""
    return _float32(weights & other) if weights.dtype == torch.bool else weights.float() * _float32(other)


def _float32(mask: Bool[Tensor, "N M"]) -> Float[Tensor, "N M"]:
    """0 and 1 as float32. PyTorch converts bytes several times faster than bool."""
    return mask.view(torch.uint8).float()


Relate = Callable[[Keys, Keys, "Tensor | None"], Relation]
