"""The contrastive loss over all ranks: what SimCLR does with views and the dense objective with points."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from medcl3d.errors import DataError
from medcl3d.losses.contrastive import Denominator, Tile, contrastive_sum
from medcl3d.objectives.relating import Relating
from medcl3d.training.diagnostics import Tally, diagnose
from medcl3d.training.distributed import all_sum, gather, gather_keys, world_size
from medcl3d.types import Keys, Loss, Rows


def contrast(
    rows: Rows,
    relating: Relating,
    temperature: float,
    denominator: Denominator,
    decoupled: bool,
    *,
    targets: Rows | None = None,
    only_kept_repel: bool = False,
) -> Loss:
    """The global loss of unit vectors ``[N, D]`` with their keys; rows are this rank's, columns everybody's.

    targets: what rows are compared with, where that is not the rows of all ranks themselves, but what a teacher says of them.
    only_kept_repel: of a support set alone, and not of this batch.

    Rows whose keys say NaN as a point's position take no part. The value is the local sum times the
    world size over the global weight, since DistributedDataParallel averages gradients over ranks.
    DataError where no anchor of any rank has a positive.
    """
    compared = rows if targets is None else targets
    columns, column_keys = gather(compared.z), gather_keys(compared.keys)
    row_use, column_use = _takes_part(rows.keys), _takes_part(column_keys)
    z, keys = rows.z[row_use], rows.keys[row_use]
    columns, column_keys = relating.columns(columns[column_use], column_keys[column_use])
    ask, tally = relating.tiles(keys, column_keys, z, columns), Tally()

    def ask_and_count(block: slice, similarity: Tensor) -> Tile:
        tile = ask(block, similarity)
        if only_kept_repel:
            tile = _without_negatives_of_the_batch(tile, column_keys)
        # A teacher's columns need not hold every view: local views have none.
        tally.add(tile, similarity, None if targets is None else keys[block].same_thing(column_keys).sum())
        return tile

    local = contrastive_sum(z, columns, ask_and_count, temperature, denominator=denominator, decoupled=decoupled)
    weight = all_sum(local.weight.detach())
    if weight == 0:
        raise DataError(
            "no anchor of this batch has a positive, so there is nothing to learn from; "
            "draw more samples per step or choose a pair strategy whose samples hold a positive"
        )
    metrics = {"loss": all_sum(local.loss.detach()) / weight} | diagnose(z.detach(), tally)
    return Loss(local.loss * world_size() / weight, metrics)


def _without_negatives_of_the_batch(tile: Tile, columns: Keys) -> Tile:
    """M = 0 for what is in no support set."""
    if tile.columns is not None:
        raise ValueError("a tile that speaks of some columns only cannot say of the others that they are ignored")
    kept = columns.linked["support"] >= 0
    with torch.set_grad_enabled(tile.similarity is not None):
        negative = tile.relation.negative * kept
    return replace(tile, relation=replace(tile.relation, negative=negative))


def _takes_part(keys: Keys) -> Tensor:
    return (keys.point < 0) | torch.isfinite(keys.position_mm).all(1)
