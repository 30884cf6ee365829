"""The contrastive loss for any relation: NT-Xent, SupCon, y-Aware and DCL are special cases.

A block of rows is compared with all columns at a time. Loss and gradient of a row depend on its own
similarities only, so each block adds its part of both and is freed: memory grows with N + M, not with N * M.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from medcl3d.config.suggestions import require_one_of
from medcl3d.core.errors import ConfigError
from medcl3d.core.relation import ListedPairs, Relation

Denominator = Literal["all", "own"]

# Pairs per block: memory for some float32 matrices of 4 MiB. Larger blocks take as long, but most columns
# of a large batch should share no key with a block; products of matrices with fewer rows are slow.
PAIRS_AT_ONCE = 1 << 20
MIN_ROWS, MAX_ROWS = 64, 512
# Items up to which the gradients of all pairs are kept, if rows and columns are the same items: one product
# of matrices then replaces two. 2,048 items take two matrices of 16 MiB.
MAX_DENSE = 2048
# Subtracted from the similarity of pairs without weight; finite, so that rows without any weight are finite.
EXCLUDED = 1e30


@dataclass(frozen=True)
class Tile:
    """The relation of a block of R rows to the columns.

    relation    ``[R, C]``
    columns     the columns of `relation`, ``Int[C]`` or a slice, of which no copies are made: for all others
                P = 0 and M = 1; None: all columns
    similarity  ``[R, M]`` leaf on which M depends, if the gradient goes through M too; None: M is constant
    """

    relation: Relation
    columns: Int[Tensor, " T"] | slice | None = None
    similarity: Float[Tensor, "R M"] | None = None


RelateBlock = Callable[[slice, Tensor], Tile]
"""(block of rows, their similarities to all columns ``[R, M]``) -> their relation."""


@dataclass(frozen=True)
class WeightedSum:
    """Sums over anchors of a_i L_i and of a_i; both are summed over ranks before dividing."""

    loss: Float[Tensor, ""]
    weight: Float[Tensor, ""]


def denominator_kind(
    denominator: Denominator, decoupled: bool, name: str = "contrastive loss"
) -> Literal["all", "own", "decoupled"]:
    """The denominator that two fields select. ConfigError for an unknown one, and for two at once.

    name: the objective's name, for the error.
    """
    require_one_of("denominator", denominator, Denominator)
    if decoupled and denominator == "own":
        raise ConfigError(
            problem="decoupled = True and denominator = 'own' are two denominators",
            remedy="remove one of the two fields",
            place=name,
        )
    return "decoupled" if decoupled else denominator


def contrastive_sum(
    z: Float[Tensor, "N E"],
    columns: Float[Tensor, "M E"] | None,
    relate_block: RelateBlock,
    temperature: float,
    *,
    denominator: Denominator = "all",
    decoupled: bool = False,
    rows_at_once: int | None = None,
) -> WeightedSum:
    """Sum over the rows of the weighted contrastive loss.

    z: ``[N, D]``, columns: ``[M, D]`` unit vectors (None: the rows themselves, which is faster);
    `relate_block` is called once per block of `rows_at_once` rows (None: chosen for speed). With
    s = similarity / temperature, `all`: D_i = sum_k (P_ik + M_ik) e^s_ik;
    `own`: D_ij = (1 - M_ij) e^s_ij + sum_k M_ik e^s_ik; `decoupled`, not with `own`: D_i = sum_k M_ik e^s_ik.
    L_i = - sum_j (P_ij / sum_k P_ik) log(e^s_ij / D), weighted by a_i = min(1, sum_j P_ij): a weak pair pulls
    less than a strong one, and the loss is continuous as a weight goes to 0. Anchors without a positive are
    excluded. If P + M < 1 the loss can be negative.

    Source: NT-Xent (Chen 2020, eq. 1), SupCon L_out (Khosla 2020, eq. 2), y-Aware (Dufumier 2021, eq. 3),
    DCL (Yeh 2022, eq. 6). Computed in float32 or better, also under autocast.
    """
    compared = z if columns is None else columns
    dtype = torch.promote_types(torch.promote_types(z.dtype, compared.dtype), torch.float32)
    rows = rows_at_once or min(MAX_ROWS, max(MIN_ROWS, PAIRS_AT_ONCE // max(1, len(compared))))
    kind = denominator_kind(denominator, decoupled)
    loss, weight = _ContrastiveSum.apply(  # type: ignore[no-untyped-call]  # torch has no types here
        z.to(dtype), None if columns is None else columns.to(dtype), relate_block, temperature, kind, rows
    )
    return WeightedSum(loss, weight)


class _ContrastiveSum(torch.autograd.Function):
    """The forward pass computes the gradients with the loss of each block; the backward pass scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        columns: Tensor | None,
        relate_block: RelateBlock,
        temperature: float,
        kind: str,
        rows_at_once: int,
    ) -> tuple[Tensor, Tensor]:
        loss, weight = z.new_zeros(()), z.new_zeros(())
        compared = z if columns is None else columns
        grad_z = torch.zeros_like(z)
        grad_columns = grad_z if columns is None else torch.zeros_like(columns)
        of_rows, of_columns = ctx.needs_input_grad[0], ctx.needs_input_grad[0 if columns is None else 1]
        dense = of_rows and columns is None and len(z) <= MAX_DENSE
        of_pairs = z.new_empty(len(z), len(z)) if dense else None
        with _without_autocast(z.device.type):
            for start in range(0, len(z), rows_at_once):
                block = slice(start, start + rows_at_once)
                similarity = z[block] @ compared.T
                tile = relate_block(block, similarity)
                if kind == "all" and tile.relation.listed is not None and tile.similarity is None:
                    part = _listed_block_loss(similarity, tile, tile.relation.listed, temperature)
                else:
                    part = _block_loss(similarity, tile, temperature, kind)
                loss += part.loss
                weight += part.weight
                if of_pairs is not None:
                    torch.mul(part.direction, part.scale, out=of_pairs[block])
                    continue
                if of_rows:
                    grad_z[block] += (part.direction @ compared) * part.scale
                if of_columns:
                    grad_columns.addmm_(part.direction.T, z[block] * part.scale)
            if of_pairs is not None:  # each item is a row and a column
                grad_z = of_pairs.T.contiguous().add_(of_pairs) @ z
        ctx.save_for_backward(grad_z, None if columns is None else grad_columns)
        ctx.mark_non_differentiable(weight)
        return loss, weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_z, grad_columns = ctx.saved_tensors
        of_columns = None if grad_columns is None else gradient * grad_columns
        return gradient * grad_z, of_columns, None, None, None, None


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Disable autocast, if it is enabled: the context takes as long as some operations of a small batch."""
    enabled = torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if enabled else nullcontext()


@dataclass(frozen=True)
class _Block:
    """The loss of R rows; its gradient by similarities is ``scale * direction``, ``[R, 1] * [R, M]``."""

    loss: Float[Tensor, ""]
    weight: Float[Tensor, ""]
    scale: Float[Tensor, "R 1"]
    direction: Float[Tensor, "R M"]


def _block_loss(similarity: Float[Tensor, "R M"], tile: Tile, temperature: float, kind: str) -> _Block:
    """The loss of a block of rows and its gradient. `similarity` ``[R, M]`` is overwritten.

    With x = e^(s - top) and r = sum_j P_ij / D_ij, the gradient of a row is (a / mass) r times (an item's
    term of D minus P / r). Columns outside the tile, with P = 0 and M = 1, therefore need only their x.
    If M depends on the similarities, autograd on the block adds the gradient through M.
    """
    e = similarity.div_(temperature)
    positive, negative = (part.to(e.dtype) for part in (tile.relation.positive, tile.relation.negative))
    s = e if tile.columns is None else e[:, tile.columns]
    mass = positive.sum(1, keepdim=True)
    pull = (positive * s).sum(1, keepdim=True)
    weights = negative if kind == "decoupled" else positive + negative
    # Pairs without weight neither count nor set the maximum. Arithmetic is faster than a mask.
    _write_back(e, tile, s.add_(weights.sign().sub_(1).mul_(EXCLUDED)))
    top = e.amax(1, keepdim=True)
    e.sub_(top).exp_()
    x = e if tile.columns is None else e[:, tile.columns]
    per_weight = (
        None if tile.similarity is None else x.clone()
    )  # contribution of a unit of M to the denominators
    if kind == "own":
        own = (1 - negative).clamp(min=0) * x
        _write_back(e, tile, x.mul_(negative))
        d = own + e.sum(1, keepdim=True)
        d.masked_fill_(positive == 0, 1.0)  # D_ij of pairs that are not positive may be 0
        log_d = (positive * d.log()).sum(1, keepdim=True) + mass * top
        ratio = (positive / d).sum(1, keepdim=True)
        attracted, anchors = positive * (1 - own / d), mass > 0
        if per_weight is not None:
            per_weight *= ratio - positive / d * (negative < 1)
    else:
        _write_back(e, tile, x.mul_(weights))
        d = e.sum(1, keepdim=True)
        log_d, ratio, attracted, anchors = mass * (d.log() + top), mass / d, positive, (mass > 0) & (d != 0)
        if per_weight is not None:
            per_weight *= ratio
    ratio, mass = ratio.masked_fill(~anchors, 1.0), mass.masked_fill(~anchors, 1.0)
    weight = mass.clamp(max=1) * anchors
    loss = torch.where(anchors, weight * (log_d - pull) / mass, 0.0)
    _write_back(e, tile, x.sub_(attracted / ratio))
    if per_weight is not None:
        per_weight = per_weight.masked_fill(~anchors, 0.0).to(tile.relation.negative.dtype)
        assert tile.similarity is not None
        (grad_weight,) = torch.autograd.grad(tile.relation.negative, tile.similarity, per_weight)
        e += grad_weight.to(e.dtype) * temperature / ratio
    return _Block(loss.sum(), weight.sum(), weight * ratio / (mass * temperature), e)


def _listed_block_loss(
    similarity: Float[Tensor, "R M"], tile: Tile, listed: ListedPairs, temperature: float
) -> _Block:
    """As `_block_loss` with `all`, if all pairs but the listed ones repel.

    The terms of D are then those of a softmax without the ignored pairs, and all else concerns listed pairs.
    """
    (row, attract), ignored = listed.attract, listed.ignored[1]
    if isinstance(tile.columns, slice):
        attract, ignored = attract + tile.columns.start, ignored + tile.columns.start
    elif tile.columns is not None:
        attract, ignored = (tile.columns.numpy()[column] for column in (attract, ignored))
    s, width = similarity.div_(temperature), similarity.shape[1]
    s.view(-1).index_fill_(0, torch.from_numpy(listed.ignored[0] * width + ignored), -EXCLUDED)
    share, top = s.softmax(1), s.amax(1)
    log_d = top - share.amax(1).log_()  # the largest share is that of the top: no second exponential
    rows, pairs = torch.from_numpy(row), torch.from_numpy(row * width + attract)
    mass = torch.from_numpy(np.bincount(row, minlength=len(s))).to(s.dtype)
    pull = s.new_zeros(len(s)).index_add_(0, rows, s.view(-1).index_select(0, pairs))
    anchors = mass.clamp(max=1)  # 1 for rows with a positive
    loss = torch.where(anchors > 0, log_d - pull / mass, 0.0).sum()
    share.view(-1).index_add_(0, pairs, mass.index_select(0, rows).reciprocal_(), alpha=-1)
    return _Block(loss, anchors.sum(), (anchors / temperature)[:, None], share)


def _write_back(whole: Float[Tensor, "R M"], tile: Tile, part: Float[Tensor, "R T"]) -> None:
    """Copy the columns of a tile back into `whole`, unless they are a part of its memory."""
    if isinstance(tile.columns, Tensor):
        whole.index_copy_(1, tile.columns, part)
