"""Relations: which items attract, which repel, which pairs are ignored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
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
    positive = positive.to(torch.float32) * other
    negative = (1 - positive if negative is None else negative.to(torch.float32)) * other
    return Relation(positive, negative)


Relate = Callable[[Keys, Keys, "Tensor | None"], Relation]
