"""The contrastive loss of every relation: NT-Xent, SupCon, y-Aware and DCL are special cases.

Things are compared a few rows at a time with all columns. What a row costs is known once it has met its columns, so each
block gives its part of the loss and of the gradient at once and is forgotten: memory grows with N + M, not with N * M.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from medcl3d.types import Relation

Denominator = Literal["all", "own"]

# Pairs of a block: few enough for a processor's cache, and to leave most columns of a large batch without a key in common.
PAIRS_AT_ONCE = 1 << 18
# But so many rows at least, since products of thin matrices are slow.
FEWEST_ROWS = 64


@dataclass(frozen=True)
class Tile:
    """How a block of R rows relates to the columns.

    relation    ``[R, C]``
    columns     ``Int[C]``, which columns it speaks of: to all others P = 0 and M = 1; None: it speaks of all
    similarity  ``[R, M]`` leaf on which M depends, if the gradient goes through M too; None: M is a constant
    """

    relation: Relation
    columns: Tensor | None = None
    similarity: Tensor | None = None


Ask = Callable[[slice, Tensor], Tile]
"""(which rows, their similarities to all columns ``[R, M]``) -> how they relate."""


@dataclass(frozen=True)
class WeightedSum:
    """Sum over anchors of a_i L_i, and of a_i: ranks add both before they divide."""

    loss: Tensor
    weight: Tensor


def contrastive_sum(
    z: Tensor,
    columns: Tensor,
    ask: Ask,
    temperature: float,
    *,
    denominator: Denominator = "all",
    decoupled: bool = False,
    rows_at_once: int | None = None,
) -> WeightedSum:
    """Sum over the rows of the weighted contrastive loss.

    z: ``[N, D]``, columns: ``[M, D]`` unit vectors; `ask` is called once for each block of `rows_at_once` rows (None: as many
    as are fast). With s = similarity / temperature, `all`: D_i = sum_k (P_ik + M_ik) e^s_ik; `own`: D_ij = (1 - M_ij) e^s_ij
    + sum_k M_ik e^s_ik; `decoupled`: D_i = sum_k M_ik e^s_ik. L_i = - sum_j (P_ij / sum_k P_ik) log(e^s_ij / D), weighted by
    a_i = min(1, sum_j P_ij): a weak pair pulls less than a strong one, and nothing jumps as a weight
    goes to 0. Anchors without a positive do not enter. Where P + M < 1 the loss may fall below 0.

    Source: NT-Xent (Chen 2020, eq. 1), SupCon L_out (Khosla 2020, eq. 2), y-Aware (Dufumier 2021, eq. 3),
    DCL (Yeh 2022, eq. 6). Computed in float32 at least, whatever autocast says.
    """
    dtype = torch.promote_types(torch.promote_types(z.dtype, columns.dtype), torch.float32)
    rows = rows_at_once or max(FEWEST_ROWS, PAIRS_AT_ONCE // max(1, len(columns)))
    kind = "decoupled" if decoupled else denominator
    loss, weight = _ContrastiveSum.apply(z.to(dtype), columns.to(dtype), ask, temperature, kind, rows)
    return WeightedSum(loss, weight)


class _ContrastiveSum(torch.autograd.Function):
    """The gradients are made with the loss, while a block is at hand; the backward pass scales them."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, columns: Tensor, ask: Ask, temperature: float, kind: str, rows_at_once: int) -> tuple[Tensor, Tensor]:
        loss, weight = z.new_zeros(()), z.new_zeros(())
        of_z, of_columns = torch.zeros_like(z), torch.zeros_like(columns)
        with torch.autocast(z.device.type, enabled=False):
            for start in range(0, len(z), rows_at_once):
                block = slice(start, start + rows_at_once)
                similarity = z[block] @ columns.T
                part = _of_block(similarity, ask(block, similarity), temperature, kind)
                loss += part.loss
                weight += part.weight
                if ctx.needs_input_grad[0]:
                    of_z[block] = (part.direction @ columns) * part.scale
                if ctx.needs_input_grad[1]:
                    of_columns.addmm_(part.direction.T, z[block] * part.scale)
        ctx.save_for_backward(of_z, of_columns)
        ctx.mark_non_differentiable(weight)
        return loss, weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        of_z, of_columns = ctx.saved_tensors
        return gradient * of_z, gradient * of_columns, None, None, None, None


@dataclass(frozen=True)
class _Block:
    """What R rows add to the loss; its gradient with respect to their similarities is ``scale * direction``, ``[R, 1] * [R, M]``."""

    loss: Tensor
    weight: Tensor
    scale: Tensor
    direction: Tensor


def _of_block(similarity: Tensor, tile: Tile, temperature: float, kind: str) -> _Block:
    """The loss of some rows and its gradient. `similarity` ``[R, M]`` is overwritten.

    With x = e^(s - top) and r = sum_j P_ij / D_ij, the gradient of a row is (a / mass) r times what a thing weighs in D,
    less P / r: pull and push of one row differ by the factor r alone, so constant columns need no more than their x.
    If M depends on the similarities, what they change of it is added by autograd on the block.
    """
    e = similarity.div_(temperature)
    positive, negative = (part.to(e.dtype) for part in (tile.relation.positive, tile.relation.negative))
    s = e if tile.columns is None else e[:, tile.columns]
    mass = positive.sum(1, keepdim=True)
    pull = (positive * s).sum(1, keepdim=True)
    weights = negative if kind == "decoupled" else positive + negative
    _put(e, tile, s.masked_fill_(weights == 0, -torch.inf))
    top = e.amax(1, keepdim=True)
    top.masked_fill_(top == -torch.inf, 0.0)
    e.sub_(top).exp_()
    x = e if tile.columns is None else e[:, tile.columns]
    per_weight = None if tile.similarity is None else x.clone()  # what a unit of M adds to the denominators
    if kind == "own":
        own = (1 - negative).clamp(min=0) * x
        _put(e, tile, x.mul_(negative))
        of_pairs = own + e.sum(1, keepdim=True)
        of_pairs.masked_fill_(positive == 0, 1.0)  # D_ij of what is no positive may be empty
        log_d = (positive * of_pairs.log()).sum(1, keepdim=True) + mass * top
        ratio = (positive / of_pairs).sum(1, keepdim=True)
        drawn, anchors = positive * (1 - own / of_pairs), mass > 0
        if per_weight is not None:
            per_weight *= ratio - positive / of_pairs * (negative < 1)
    else:
        _put(e, tile, x.mul_(weights))
        d = e.sum(1, keepdim=True)
        log_d, ratio, drawn, anchors = mass * (d.log() + top), mass / d, positive, (mass > 0) & (d != 0)
        if per_weight is not None:
            per_weight *= ratio
    ratio, mass = ratio.masked_fill(~anchors, 1.0), mass.masked_fill(~anchors, 1.0)
    weight = mass.clamp(max=1) * anchors
    loss = torch.where(anchors, weight * (log_d - pull) / mass, 0.0)
    _put(e, tile, x.sub_(drawn / ratio))
    if per_weight is not None:
        per_weight = per_weight.masked_fill(~anchors, 0.0).to(tile.relation.negative.dtype)
        assert tile.similarity is not None
        (through,) = torch.autograd.grad(tile.relation.negative, tile.similarity, per_weight)
        e += through.to(e.dtype) * temperature / ratio
    return _Block(loss.sum(), weight.sum(), weight * ratio / (mass * temperature), e)


def _put(whole: Tensor, tile: Tile, part: Tensor) -> None:
    """Write the columns that a tile speaks of back, where they are not the whole itself."""
    if tile.columns is not None:
        whole.index_copy_(1, tile.columns, part)
