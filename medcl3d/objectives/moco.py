"""MoCo: contrastive learning with a momentum encoder and an embedding queue."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from medcl3d.config.field_types import NonNegativeInt, Positive, PositiveInt
from medcl3d.core.batch import PairBatch
from medcl3d.core.embeddings import Embedded, Embeddings, Loss
from medcl3d.core.keys import Keys
from medcl3d.encoders.network import Network
from medcl3d.objectives import OBJECTIVES
from medcl3d.objectives.contrast import contrast
from medcl3d.objectives.momentum_encoder import Momentum, MomentumEncoder, Schedule
from medcl3d.objectives.projector import HeadNorm, Projector
from medcl3d.objectives.relating import Relating


@OBJECTIVES.register("moco")
class MoCo(nn.Module):
    """Contrastive loss of views and a momentum encoder's embeddings, of this batch and a queue with keys.

    queue_size      embeddings of earlier batches. With a queue it is MoCo v2, in which only the queue repels;
                    0 is MoCo v3, in which the batch repels
    predictor       a further head on the student, as in v3
    momentum        of the momentum encoder. Default: chosen from the number of steps S so that at most 1% of
                    its random initialisation is left at the end: 1 - ln(100) / S and at most 0.999, as in v2;
                    with `momentum_rises`, 1 - 2 ln(100) / (S + 1) and at most 0.99, as in v3
    momentum_rises  to 1 at the end along half a cosine, as in v3
    norm            normalisation between the layers of the heads

    Other fields as in `simclr`.
    Targets are of global views only, so local views (`multi_crop`) are neither targets nor in the queue.
    The strategy relates queue items like items of the batch: a scan of the anchor's patient in the queue may
    attract, or be ignored. Source: He et al., CVPR 2020; v2: Chen et al. 2020, arXiv 2003.04297; v3: Chen et
    al., ICCV 2021, eq. 1 (here not scaled by 2 T).
    """

    uses: ClassVar[frozenset[str]] = frozenset({"positive", "negative", "budget"})
    decodes: ClassVar[bool] = False

    def __init__(
        self,
        network: Network,
        *,
        queue_size: NonNegativeInt = 1024,
        predictor: bool = False,
        momentum: Momentum | None = None,
        momentum_rises: bool = False,
        temperature: Positive = 0.1,
        norm: HeadNorm = "batch",
        hidden_dim: PositiveInt = 256,
        out_dim: PositiveInt = 128,
        num_layers: Annotated[int, Field(ge=1, le=8)] = 2,
    ):
        super().__init__()
        self.dim, self.queue_size, self.temperature = out_dim, queue_size, temperature
        self.schedule = Schedule(momentum, published=0.99 if momentum_rises else 0.999, rises=momentum_rises)
        self.momentum = self.schedule.published
        self.projector = Projector(network.num_features, hidden_dim, out_dim, num_layers, norm)
        self.predictor = Projector(out_dim, hidden_dim, out_dim, 2, norm) if predictor else nn.Identity()
        self.teacher = MomentumEncoder(network, self.projector)

    def before_step(self, step: int, steps: int) -> None:
        """Update the momentum."""
        self.momentum = self.schedule.at(step, steps)

    def notes(self, steps: int) -> list[str]:
        """Notes on the momentum."""
        return self.schedule.notes("moco", steps)

    def after_step(self, network: Network) -> None:
        """Update the momentum encoder."""
        self.teacher.follow(self.momentum, network, self.projector)

    def embed(self, network: Network, batch: PairBatch) -> Embedded:
        """The student's unit vectors of all views, and the momentum encoder's of the global ones."""
        keys = Keys.cat(group.keys for group in batch.groups)
        pooled = torch.cat([network(group.voxels).pooled for group in batch.groups])
        online = self.predictor(self.projector(pooled))
        teacher, projector = self.teacher.copies
        with torch.no_grad():
            target = projector(teacher(batch.main.voxels).pooled)
        return {"online": Embeddings(online, keys), "target": Embeddings(target, batch.main.keys)}

    def loss(self, embedded: Embedded, relating: Relating) -> Loss:
        """Compare views with the targets of all ranks and the queue, then add the former to the queue."""
        return contrast(
            embedded["online"],
            relating,
            self.temperature,
            "all",
            False,
            targets=embedded["target"],
            only_queue_repels=self.queue_size > 0,
        )
