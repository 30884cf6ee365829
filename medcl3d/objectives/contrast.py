"""The contrastive loss over all ranks, of views or points."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from medcl3d.core.embeddings import Embeddings, Loss, require
from medcl3d.core.keys import Keys
from medcl3d.distributed.collectives import all_sums, gather, gather_keys, world_size
from medcl3d.losses.budget import BudgetedPairs
from medcl3d.losses.contrastive import Denominator, Tile, contrastive_sum
from medcl3d.objectives.diagnostics import Tally, diagnose, own_sums
from medcl3d.objectives.relating import Relating
from medcl3d.pairs.traits import REPELS, SUPPORT

NO_POSITIVE = (
    "no anchor of this batch has a positive, so the loss is undefined; "
    "draw more samples per step or choose a pair strategy whose samples hold a positive"
)


def contrast(
    rows: Embeddings,
    relating: Relating,
    temperature: float,
    denominator: Denominator,
    decoupled: bool,
    *,
    targets: Embeddings | None = None,
    only_queue_repels: bool = False,
) -> Loss:
    """The global loss of unit vectors ``[N, D]`` with keys; rows are this rank's, columns those of all ranks.

    targets: the embeddings that rows are compared with, if not those of the rows themselves: a momentum
    encoder's.
    only_queue_repels: only embeddings in the queue are negatives, not those of this batch.

    Points with a position of NaN in their keys are left out. The value is the local sum times the
    world size over the global weight, since DistributedDataParallel averages gradients over ranks. If pairs
    have a budget, budget_weight times the mean of max(0, 1 - cos - b)^2 over them is added.
    DataError if no anchor of any rank has a positive.
    """
    compared = rows if targets is None else targets
    columns, column_keys = gather(compared.z), gather_keys(compared.keys)
    valid_rows = _valid(rows.keys)
    same = targets is None and world_size() == 1
    valid_columns = valid_rows if same else _valid(column_keys)
    z, keys = rows.z[valid_rows], rows.keys[valid_rows]
    columns, column_keys = relating.columns(columns[valid_columns], column_keys[valid_columns])
    if only_queue_repels:  # known before linking, so that a strategy weights only what repels
        queued = column_keys.linked[SUPPORT] >= 0
        column_keys = replace(column_keys, linked={**column_keys.linked, REPELS: queued})
    relate_block, tally, budgeted = relating.tiles(keys, column_keys, z, columns), Tally(), BudgetedPairs()

    def relate_and_count(block: slice, similarity: Tensor) -> Tile:
        tile = relate_block(block, similarity)
        if only_queue_repels:
            tile = _without_negatives_of_the_batch(tile, column_keys)
        budgeted.add(block, tile)
        if relating.logged:
            # Targets may lack a row's own view: local views have no target.
            selves = None if targets is None else keys[block].same_item(column_keys).sum()
            tally.add(tile, similarity, selves)
        return tile

    others = None if same and relating.support is None else columns
    local = contrastive_sum(
        z, others, relate_and_count, temperature, denominator=denominator, decoupled=decoupled
    )
    numbers = {"weight": local.weight, "loss": local.loss}
    if relating.logged:
        numbers["diagnosis"] = own_sums(z.detach(), tally)
    if relating.budget_weight:
        excess = budgeted.sum(z, columns)
        numbers |= {"budgeted": excess.weight, "excess": excess.loss}
    for name, ratio in relating.sums.items():
        numbers[f"of strategy: {name}"] = torch.stack([part.to(z) for part in ratio])
    sums = all_sums(numbers)
    required = require(sums["weight"], NO_POSITIVE)
    value = local.loss * world_size() / sums["weight"]
    metrics = {"loss": sums["loss"] / sums["weight"]}
    if relating.logged:
        metrics |= diagnose(sums["diagnosis"])
    if relating.budget_weight:
        pairs = sums["budgeted"].clamp(min=1)
        value = value + relating.budget_weight * excess.loss * world_size() / pairs
        mean = sums["excess"] / pairs
        metrics["loss"] = metrics["loss"] + relating.budget_weight * mean
        metrics |= {"budget_excess": mean, "pairs_with_budget": sums["budgeted"]}
    for name in relating.sums:
        top, bottom = sums[f"of strategy: {name}"]
        metrics[name] = top / bottom.clamp(min=1)
    return Loss(value, metrics, required)


def _without_negatives_of_the_batch(tile: Tile, columns: Keys) -> Tile:
    """Set M = 0 for columns outside the queue."""
    if tile.columns is not None:
        raise ValueError("a tile with some columns only cannot mark the others as ignored")
    with torch.set_grad_enabled(tile.similarity is not None):
        negative = tile.relation.negative * columns.linked[REPELS]
    return replace(tile, relation=replace(tile.relation, negative=negative))


def _valid(keys: Keys) -> slice | Int[Tensor, " _"]:
    """The views, and the points with a position: as indices, which are read once and not per column."""
    if keys.are_views:
        return slice(None)
    return ((keys.point < 0) | torch.isfinite(keys.position_mm).all(1)).nonzero().flatten()
