"""Contrastive losses on views and on points."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from medcl3d.config.field_types import Fraction, NonNegative, Positive, PositiveInt
from medcl3d.core.batch import PairBatch
from medcl3d.core.embeddings import Embedded, Loss
from medcl3d.core.relation import Relate
from medcl3d.encoders.network import Network
from medcl3d.objectives import OBJECTIVES
from medcl3d.objectives.dense import Dense, embed_points
from medcl3d.objectives.projector import HeadNorm
from medcl3d.objectives.relating import Relating
from medcl3d.objectives.simclr import SimCLR
from medcl3d.objectives.weighted import weighted


@OBJECTIVES.register("global_dense")
class GlobalDense(nn.Module):
    """`dense_weight` x `dense` + (1 - `dense_weight`) x `simclr`, from one forward pass.

    dense_weight  weight of the loss of points; the rest is that of views
    temperature   of both losses
    norm          of the head of views, as in `simclr`

    Points: fields as in `dense`; both heads: fields as in `simclr`.
    Source: the sum of both terms as in DenseCL (Wang et al., CVPR 2021, eq. 3, weight 0.5).
    """

    uses: ClassVar[frozenset[str]] = frozenset({"positive", "negative", "budget"})
    decodes: ClassVar[bool] = True
    dim = 0

    def __init__(
        self,
        network: Network,
        *,
        dense_weight: Fraction = 0.5,
        num_points: PositiveInt = 32,
        tolerance_mm: NonNegative = 0.0,
        ignore_mm: NonNegative = 5.0,
        temperature: Positive = 0.1,
        norm: HeadNorm = "batch",
        hidden_dim: PositiveInt = 256,
        out_dim: PositiveInt = 128,
    ):
        super().__init__()
        self.dense_weight, self.num_points, self.temperature = dense_weight, num_points, temperature
        self.views = SimCLR(
            network, temperature=temperature, norm=norm, hidden_dim=hidden_dim, out_dim=out_dim
        )
        self.points = Dense(
            network,
            num_points=num_points,
            tolerance_mm=tolerance_mm,
            ignore_mm=ignore_mm,
            temperature=temperature,
            hidden_dim=hidden_dim,
            out_dim=out_dim,
        )

    def embed(self, network: Network, batch: PairBatch) -> Embedded:
        """Unit vectors of all views, and of the points of the global ones."""
        features = [network(group.voxels) for group in batch.groups]
        views = self.views.embed_pooled([one.pooled for one in features], batch)
        points = embed_points(self.points.projector, features[0].decoded, batch)
        return {"views": views["online"], "points": points["online"]}

    def gate(self, relate: Relate) -> Relate:
        """As `dense`; views keep the strategy's relation."""
        return self.points.gate(relate)

    def loss(self, embedded: Embedded, relating: Relating) -> Loss:
        """The weighted sum."""
        return weighted(
            {
                "views": (1 - self.dense_weight, self.views.loss({"online": embedded["views"]}, relating)),
                "points": (self.dense_weight, self.points.loss({"online": embedded["points"]}, relating)),
            }
        )
