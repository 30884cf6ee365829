"""BYOL: prediction of a momentum encoder's projection of a partner."""

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
from medcl3d.objectives.momentum_encoder import Momentum, MomentumEncoder, Schedule
from medcl3d.objectives.partners import draw_partners, mean_loss
from medcl3d.objectives.projector import HeadNorm, Projector
from medcl3d.objectives.relating import Relating


@OBJECTIVES.register("byol")
class BYOL(nn.Module):
    """2 - 2 cos of a prediction and the momentum encoder's projection of a partner drawn from P; M is unused.

    momentum  at the start, rising to 1 at the end along half a cosine. Default: chosen from the number of
              steps S, 1 - 2 ln(100) / (S + 1) and at most 0.996 as published, so that at most 1% of the
              momentum encoder's random initialisation is left at the end
    norm      of the heads; `batch`, over the views of all ranks, is as published: with `layer` features
              collapse more easily

    Other fields as in `simclr`.
    Targets are of global views only: local views (`multi_crop`) predict and are not predicted.
    Source: Grill et al., NeurIPS 2020, eq. 2, as the mean over views (their sum over the two directions is
    twice that).
    """

    uses: ClassVar[frozenset[str]] = frozenset({"positive"})
    decodes: ClassVar[bool] = False

    def __init__(
        self,
        network: Network,
        *,
        momentum: Momentum | None = None,
        norm: HeadNorm = "batch",
        hidden_dim: PositiveInt = 512,
        out_dim: PositiveInt = 128,
        num_layers: Annotated[int, Field(ge=1, le=8)] = 2,
    ):
        super().__init__()
        self.dim, self.schedule = out_dim, Schedule(momentum, published=0.996)
        self.momentum = self.schedule.published
        self.projector = Projector(network.num_features, hidden_dim, out_dim, num_layers, norm, unit=False)
        self.predictor = Projector(out_dim, hidden_dim, out_dim, 2, norm, unit=False)
        self.teacher = MomentumEncoder(network, self.projector)

    def before_step(self, step: int, steps: int) -> None:
        """Update the momentum."""
        self.momentum = self.schedule.at(step, steps)

    def notes(self, steps: int) -> list[str]:
        """Notes on the momentum."""
        return self.schedule.notes("byol", steps)

    def after_step(self, network: Network) -> None:
        """Update the momentum encoder."""
        self.teacher.follow(self.momentum, network, self.projector)

    def embed(self, network: Network, batch: PairBatch) -> Embedded:
        """Predictions of all views, and the momentum encoder's projections of the global ones."""
        keys = Keys.cat(group.keys for group in batch.groups)
        pooled = torch.cat([network(group.voxels).pooled for group in batch.groups])
        online = self.predictor(self.projector(pooled))
        teacher, projector = self.teacher.copies
        with torch.no_grad():
            target = projector(teacher(batch.main.voxels).pooled)
        return {"online": Embeddings(online, keys), "target": Embeddings(target, batch.main.keys)}

    def loss(self, embedded: Embedded, relating: Relating) -> Loss:
        """The mean over anchors, weighted by a_i."""
        online = embedded["online"]
        drawn = draw_partners(online, embedded["target"], relating)
        distance = cosine_distance(online.z, drawn.chosen)
        return mean_loss((drawn.weight * distance).sum(), drawn.weight.sum(), drawn.numbers)
