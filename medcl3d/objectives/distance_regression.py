"""Regression of distances in mm between points of one scan, without positives and negatives."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from medcl3d.config.field_types import Positive, PositiveInt
from medcl3d.core.batch import PairBatch
from medcl3d.core.embeddings import Embedded, Embeddings, Loss, require
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relate, Relation
from medcl3d.distributed.collectives import all_sums, gather, gather_keys, world_size
from medcl3d.encoders.network import Network
from medcl3d.losses.distances import distance_errors
from medcl3d.objectives import OBJECTIVES
from medcl3d.objectives.dense import crop_keys, decoded_channels, embed_points
from medcl3d.objectives.diagnostics import effective_rank
from medcl3d.objectives.projector import HeadNorm, Projector
from medcl3d.objectives.relating import Relating
from medcl3d.pairs.boxes import distance_mm

NOT_COMPARED = (
    "no two points of this batch share a frame, so distances are undefined; draw views of one "
    "scan, for example with overlapping_crops"
)


@OBJECTIVES.register("distance_regression")
class DistanceRegression(nn.Module):
    """Mean over pairs of points of one frame of (|z_i - z_j| - d_ij / scale_mm)^2, d_ij in mm.

    Features are interpolated in the decoder's map as in `dense`; embeddings have any length. The strategy
    only draws the crops: its relation has no effect. Points of two frames, whose distance is undefined, are
    not compared.

    num_points  points per sample, in the intersection of its views; a strategy that relates points has its
                own number
    scale_mm    millimetres per unit of embedding distance
    norm        of the head; `layer` is compatible with `train.grad_cache`

    Other fields as in `simclr`.
    `error_mm` is logged: the root of the loss, in mm.
    Source: APE (arXiv 2409.10291); distances as a target also in COVER (arXiv 2506.20850).
    """

    uses: ClassVar[frozenset[str]] = frozenset()
    decodes: ClassVar[bool] = True
    dim = 0

    def __init__(
        self,
        network: Network,
        *,
        num_points: PositiveInt = 32,
        scale_mm: Positive = 20.0,
        norm: HeadNorm = "layer",
        hidden_dim: PositiveInt = 128,
        out_dim: PositiveInt = 64,
        num_layers: Annotated[int, Field(ge=1, le=8)] = 2,
    ):
        super().__init__()
        channels = decoded_channels(network)
        self.num_points, self.scale_mm = num_points, scale_mm
        self.projector = Projector(channels, hidden_dim, out_dim, num_layers, norm, unit=False)

    def embed(self, network: Network, batch: PairBatch) -> Embedded:
        """One vector of any length per point and global view."""
        return embed_points(self.projector, network(batch.main.voxels).decoded, batch)

    def loss(self, embedded: Embedded, relating: Relating) -> Loss:
        """The mean over pairs of the global batch. DataError if no two points share a frame."""
        online = embedded["online"]
        valid = _valid(online)
        rows = online[valid]
        cols = Embeddings(gather(online.z), gather_keys(online.keys))
        cols = cols[valid if world_size() == 1 else _valid(cols)]
        target = distance_mm(rows.keys, cols.keys) / self.scale_mm
        compared = torch.isfinite(target) & ~rows.keys.same_item(cols.keys)
        errors = distance_errors(rows.z, cols.z, target, compared)
        number = compared.sum().to(errors.dtype)
        z, numbers = online.z.detach(), {"weight": number, "loss": errors.sum()}
        if relating.logged:
            numbers |= {"effective_rank": effective_rank(z), "feature_std": z.std(0).mean()}
        sums = all_sums(numbers)
        required = require(sums["weight"], NOT_COMPARED)
        mean = sums["loss"] / sums["weight"]
        metrics = {"loss": mean, "error_mm": mean.sqrt() * self.scale_mm}
        if relating.logged:
            metrics |= {name: sums[name] / world_size() for name in ("effective_rank", "feature_std")}
        return Loss(errors.sum() * world_size() / sums["weight"], metrics, required)

    def gate(self, relate: Relate) -> Relate:
        """The relation of the points' crops, for pictures: it has no effect on the loss."""

        def relate_crops(rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
            return relate(crop_keys(rows), crop_keys(cols), similarity)

        return relate_crops


def _valid(points: Embeddings) -> Int[Tensor, " _"]:
    """The indices of the points with a position."""
    return torch.isfinite(points.keys.position_mm).all(1).nonzero().flatten()
