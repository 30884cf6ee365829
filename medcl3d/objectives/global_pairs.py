"""Pairs of the global batch on every rank, for losses on statistics of all samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from medcl3d.core.batch import PairBatch
from medcl3d.core.embeddings import Embedded, Embeddings, Required
from medcl3d.core.keys import Keys
from medcl3d.distributed.collectives import all_sums, gather
from medcl3d.encoders.network import Network
from medcl3d.objectives.partners import draw_partners, metrics_of
from medcl3d.objectives.projector import Projector
from medcl3d.objectives.relating import GlobalViews, Relating


@dataclass(frozen=True)
class GlobalPairs:
    """First views of all ranks' samples and partners ``[N, D]``; views without a positive are left out."""

    first: Float[Tensor, "N E"]
    second: Float[Tensor, "N E"]
    weight: Float[Tensor, " N"]
    metrics: dict[str, Float[Tensor, ""]]
    required: tuple[Required, ...]


def project(network: Network, projector: Projector, batch: PairBatch) -> Embedded:
    """One embedding per view, of all roles."""
    pooled = torch.cat([network(group.voxels).pooled for group in batch.groups])
    return {"online": Embeddings(projector(pooled), Keys.cat(group.keys for group in batch.groups))}


def global_pairs(rows: Embeddings, relating: Relating) -> GlobalPairs:
    """Draw partners of each sample's first view and gather both with gradients.

    All ranks compute the same loss on them: its gradient, summed over ranks by the gather and averaged by
    DistributedDataParallel, equals that of one process.
    """
    anchors = rows[_first_views(rows.keys, relating.global_views)]
    drawn = draw_partners(anchors, rows, relating)
    metrics, required = metrics_of(all_sums(drawn.numbers))
    width = anchors.z.shape[1]
    pairs = gather(torch.cat([anchors.z, drawn.chosen, drawn.weight[:, None]], dim=1))
    pairs = pairs[(pairs[:, -1] > 0).nonzero().flatten()]
    return GlobalPairs(pairs[:, :width], pairs[:, width:-1], pairs[:, -1], metrics, required)


def _first_views(keys: Keys, views: GlobalViews | None) -> slice | Int[Tensor, " _"]:
    """The first view of each sample: global views come first, sorted by sample, then view."""
    if views is None or views.numbers[0] != 0:
        return (keys.view == 0).nonzero().flatten()
    number = len(views.numbers)
    return slice(0, views.samples * number, number)
