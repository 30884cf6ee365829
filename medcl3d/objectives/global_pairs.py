"""Pairs of the whole batch, on every rank: for losses of statistics over all samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medcl3d.encoders.network import Network
from medcl3d.objectives.partners import draw_partners
from medcl3d.objectives.projector import Projector
from medcl3d.objectives.relating import Relating
from medcl3d.training.distributed import gather
from medcl3d.types import Embedded, Keys, PairBatch, Rows


@dataclass(frozen=True)
class GlobalPairs:
    """The first view of each sample of all ranks with its partner ``[N, D]``; pairs without a positive are left out."""

    first: Tensor
    second: Tensor
    weight: Tensor
    metrics: dict[str, Tensor]


def project(network: Network, projector: Projector, batch: PairBatch) -> Embedded:
    """One vector a view of whatever role."""
    pooled = torch.cat([network(group.voxels).pooled for group in batch.groups])
    return {"online": Rows(projector(pooled), Keys.cat(group.keys for group in batch.groups))}


def global_pairs(rows: Rows, relating: Relating) -> GlobalPairs:
    """Partners of each sample's first view, gathered with gradients.

    Every rank computes the same loss of them: its gradient, summed over ranks by the gather and averaged by
    DistributedDataParallel, is that of one process.
    """
    anchors = rows[rows.keys.view == 0]
    drawn = draw_partners(anchors, rows, relating)
    first, second, weight = gather(anchors.z), gather(drawn.chosen), gather(drawn.weight)
    taken = weight > 0
    return GlobalPairs(first[taken], second[taken], weight[taken], drawn.metrics)
