"""Partners of anchors, drawn from the relation, for objectives that compare explicit pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.nn import functional as F

from medcl3d.core.embeddings import Embeddings, Loss, Required, require
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation
from medcl3d.distributed.collectives import all_sums, gather, gather_keys, world_size
from medcl3d.distributed.seeding import Stream
from medcl3d.losses.contrastive import Tile
from medcl3d.objectives.contrast import NO_POSITIVE
from medcl3d.objectives.diagnostics import Tally, diagnose, own_sums
from medcl3d.objectives.relating import Relating

# Constants of splitmix64 (Steele et al., OOPSLA 2014), as signed numbers.
_GOLDEN, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685


@dataclass(frozen=True)
class Partners:
    """The partners of this rank's anchors.

    chosen   ``[N, D]`` the target drawn for each anchor
    weight   ``[N]`` a_i = min(1, sum_j P_ij); 0 for anchors without a positive
    numbers  of this rank, for `metrics_of`
    """

    chosen: Float[Tensor, "N E"]
    weight: Float[Tensor, " N"]
    numbers: dict[str, Tensor]


@dataclass(frozen=True)
class Related:
    """Targets of all ranks in the order of their samples, and the relation of this rank's anchors to them.

    order    ``Int[M]``: order that sorts the gathered targets into the first M rows of `targets` (the queue
             follows)
    keys     of these M rows
    numbers  of this rank, for `metrics_of`
    """

    targets: Float[Tensor, "_ E"]
    order: Int[Tensor, " M"]
    keys: Keys
    relation: Relation
    numbers: dict[str, Tensor]


def relate_to_all(anchors: Embeddings, targets: Embeddings, relating: Relating) -> Related:
    """Relate this rank's anchors to the targets of all ranks."""
    columns, keys = gather(targets.z), gather_keys(targets.keys)
    order = in_order(keys)
    in_batch = keys[order]
    columns, keys = relating.columns(columns[order], in_batch)
    z = F.normalize(anchors.z.detach(), dim=1)
    similarity = z @ F.normalize(columns.detach(), dim=1).T
    relation = relating(anchors.keys, keys, similarity)
    numbers = {"positive": relation.positive.sum()}
    if relating.logged:
        tally = Tally()
        tally.add(Tile(relation), similarity, anchors.keys.same_item(keys).sum())
        numbers["diagnosis"] = own_sums(z, tally)
    return Related(columns, order, in_batch, relation, numbers)


def mean_loss(local: Tensor, weight: Tensor, numbers: Mapping[str, Tensor]) -> Loss:
    """The global mean of this rank's sum of losses and of weights, with the metrics of its relation.

    numbers: of `Related` or `Partners`. Scaled for DistributedDataParallel, as by `global_mean`; all numbers
    are summed in one collective. DataError if no anchor of any rank has a positive.
    """
    sums = all_sums({"weight": weight, "loss": local, **numbers})
    metrics, required = metrics_of(sums)
    mean = sums["loss"] / sums["weight"]
    return Loss(local * world_size() / sums["weight"], {"loss": mean} | metrics, required)


def metrics_of(sums: Mapping[str, Tensor]) -> tuple[dict[str, Float[Tensor, ""]], tuple[Required, ...]]:
    """The metrics that all objectives log, and what the loss requires, from `numbers` of all ranks."""
    required = require(sums["positive"], NO_POSITIVE)
    return diagnose(sums["diagnosis"]) if "diagnosis" in sums else {}, required


def draw_partners(anchors: Embeddings, targets: Embeddings, relating: Relating) -> Partners:
    """Draw one target per anchor with probability P_ij / sum_j P_ij, the same for any number of ranks.

    anchors, targets: this rank's embeddings of one dimension; a target is never the anchor's own view. Both
    get gradients.
    """
    related = relate_to_all(anchors, targets, relating)
    positive = related.relation.positive.double()
    mass = positive.cumsum(1)
    index = (mass <= uniform(anchors.keys)[:, None] * mass[:, -1:]).sum(1).clamp(max=positive.shape[1] - 1)
    weight = positive.sum(1).clamp(max=1).to(anchors.z.dtype)
    return Partners(related.targets[index], weight, related.numbers)


def in_order(keys: Keys) -> Int[Tensor, " N"]:
    """``Int[N]``: the order by sample, then view, then point, which does not depend on ranks."""
    order = torch.argsort(keys.point, stable=True)
    for column in (keys.view, keys.sample):
        order = order[torch.argsort(column[order], stable=True)]
    return order


def uniform(keys: Keys, stream: int = Stream.PARTNER) -> Float64[Tensor, " N"]:
    """``Float64[N]`` in [0, 1), a function of each item's sample, view and point alone.

    Computed by mixing bits of these numbers (splitmix64), so that no random generator is needed per device or
    rank.
    """
    state = torch.full_like(keys.sample, stream)
    for column in (keys.sample, keys.view, keys.point):
        state = _mixed(state + column)
    return _shifted(state, 11).double() * 2.0**-53


def _mixed(x: Tensor) -> Tensor:
    x = x + _GOLDEN
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
