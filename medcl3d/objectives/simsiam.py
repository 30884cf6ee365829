"""SimSiam: prediction of a partner's projection with stop-gradient."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from medcl3d.config.field_types import PositiveInt
from medcl3d.core.batch import PairBatch
from medcl3d.core.embeddings import Embedded, Embeddings, Loss
from medcl3d.core.keys import Keys
from medcl3d.encoders.network import Network
from medcl3d.losses.pairs import cosine_distance
from medcl3d.objectives import OBJECTIVES
from medcl3d.objectives.partners import draw_partners, mean_loss
from medcl3d.objectives.projector import HeadNorm, Projector
from medcl3d.objectives.relating import Relating


@OBJECTIVES.register("simsiam")
class SimSiam(nn.Module):
    """-cos of a prediction and the stop-gradient projection of a partner drawn from P; M has no effect.

    norm  of the heads; `batch`, over the views of all ranks, is as published: with `layer` features collapse
          more easily

    Other fields as in `simclr`.
    Targets are of global views only: local views (`multi_crop`) predict and are not predicted.
    Source: Chen and He, CVPR 2021, eq. 1 to 4.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"positive"})
    decodes: ClassVar[bool] = False

    def __init__(
        self,
        network: Network,
        *,
        norm: HeadNorm = "batch",
        hidden_dim: PositiveInt = 512,
        out_dim: PositiveInt = 128,
        num_layers: Annotated[int, Field(ge=1, le=8)] = 2,
    ):
        super().__init__()
        self.dim = out_dim
        self.projector = Projector(network.num_features, hidden_dim, out_dim, num_layers, norm, unit=False)
        self.predictor = Projector(out_dim, max(1, hidden_dim // 4), out_dim, 2, norm, unit=False)

    def embed(self, network: Network, batch: PairBatch) -> Embedded:
        """Predictions of all views, and the projections of the global ones without gradient."""
        keys = Keys.cat(group.keys for group in batch.groups)
        projected = self.projector(torch.cat([network(group.voxels).pooled for group in batch.groups]))
        target = projected[: len(batch.main.keys)].detach()
        return {
            "online": Embeddings(self.predictor(projected), keys),
            "target": Embeddings(target, batch.main.keys),
        }

    def loss(self, embedded: Embedded, relating: Relating) -> Loss:
        """The mean over anchors, weighted by a_i."""
        online = embedded["online"]
        drawn = draw_partners(online, embedded["target"], relating)
        cosine = 1 - cosine_distance(online.z, drawn.chosen) / 2
        return mean_loss(-(drawn.weight * cosine).sum(), drawn.weight.sum(), drawn.numbers)
