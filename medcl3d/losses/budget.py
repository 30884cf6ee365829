"""Squared excess of cosine distances over the budgets of their pairs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from medcl3d.losses.contrastive import Tile, WeightedSum


class BudgetedPairs:
    """The pairs with a budget of a batch, collected block by block: they are few compared to all pairs."""

    def __init__(self, tiles: Iterable[tuple[slice, Tile]] = ()) -> None:
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for block, tile in tiles:
            self.add(block, tile)

    @torch.no_grad()
    def add(self, block: slice, tile: Tile) -> None:
        """Add the pairs of a tile: those with a budget that is not NaN."""
        if tile.relation.budget is None:
            return
        row, column = (~tile.relation.budget.isnan()).nonzero(as_tuple=True)
        budget = tile.relation.budget[row, column]
        if isinstance(tile.columns, slice):
            column = column + tile.columns.start
        elif tile.columns is not None:
            column = tile.columns[column]
        self._parts.append((row + (block.start or 0), column, budget))

    def excess(self, z: Float[Tensor, "N E"], columns: Float[Tensor, "M E"]) -> Float[Tensor, " K"]:
        """max(0, 1 - cos - b) of each pair, ``[K]``; unit vectors ``[N, D]`` and ``[M, D]``."""
        if not self._parts:
            return z.new_zeros(0)
        row, column, budget = (torch.cat(part) for part in zip(*self._parts, strict=True))
        dtype = torch.promote_types(torch.promote_types(z.dtype, columns.dtype), torch.float32)
        with torch.autocast(z.device.type, enabled=False):
            cosine = (z.to(dtype)[row] * columns.to(dtype)[column]).sum(1)
            return F.relu(1 - cosine - budget.to(dtype))

    def sum(self, z: Float[Tensor, "N E"], columns: Float[Tensor, "M E"]) -> WeightedSum:
        """The sum of max(0, 1 - cos - b)^2 over pairs, and their number.

        Source: a margin that grows with time as in TINC (Emre et al., MICCAI 2022, arXiv 2206.15282), there
        on the invariance term of VICReg.
        """
        excess = self.excess(z, columns)
        return WeightedSum(excess.square().sum(), excess.new_full((), float(len(excess))))
