"""A student's views against what a slowly following teacher says now, and said before."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from medcl3d.encoders.network import Network
from medcl3d.objectives import OBJECTIVES
from medcl3d.objectives.contrast import contrast
from medcl3d.objectives.projector import HeadNorm, Projector
from medcl3d.objectives.relating import Relating
from medcl3d.objectives.teacher import Momentum, Schedule, Teacher
from medcl3d.registry import Count, Positive, Whole
from medcl3d.types import Embedded, Keys, Loss, PairBatch, Rows


@OBJECTIVES.register("moco")
class MoCo(nn.Module):
    """Contrastive loss of student's views with a teacher's vectors: of this batch, and of a queue with the keys they had.

    queue_size      vectors of earlier batches; with a queue it is MoCo v2, where these alone repel. 0 is MoCo v3: the batch repels
    predictor       a further head on the student, as in v3
    momentum        of the teacher. Default: chosen from the number of steps S so that at most 1% of its random start is left at
                    the end: 1 - ln(100) / S and at most 0.999, as in v2; with `momentum_rises`, 1 - 2 ln(100) / (S + 1) and at
                    most 0.99, as in v3
    momentum_rises  up to 1 at the end along half a cosine, as in v3

    The teacher reads global views alone, so that local views (`multi_crop`) are neither targets nor in the queue.
    What is in the queue is related by the strategy as anything else: a scan of the anchor's patient there may attract, or be
    ignored. Source: He et al., CVPR 2020; v2: Chen et al. 2020, arXiv 2003.04297; v3: Chen et al., ICCV 2021, eq. 1 (ours is
    not scaled by 2 T).
    """

    uses: ClassVar[frozenset[str]] = frozenset({"positive", "negative"})
    decodes: ClassVar[bool] = False

    def __init__(
        self,
        network: Network,
        *,
        queue_size: Whole = 1024,
        predictor: bool = False,
        momentum: Momentum | None = None,
        momentum_rises: bool = False,
        temperature: Positive = 0.1,
        norm: HeadNorm = "batch",
        hidden_dim: Count = 256,
        out_dim: Count = 128,
        num_layers: Annotated[int, Field(ge=1, le=8)] = 2,
    ):
        super().__init__()
        self.dim, self.queue_size, self.temperature = out_dim, queue_size, temperature
        self.schedule = Schedule(momentum, published=0.99 if momentum_rises else 0.999, rises=momentum_rises)
        self.momentum = self.schedule.published
        self.projector = Projector(network.num_features, hidden_dim, out_dim, num_layers, norm)
        self.predictor = Projector(out_dim, hidden_dim, out_dim, 2, norm) if predictor else nn.Identity()
        self.teacher = Teacher(network, self.projector)

    def before_step(self, step: int, steps: int) -> None:
        """The teacher slows down, if it is to."""
        self.momentum = self.schedule.at(step, steps)

    def notes(self, steps: int) -> list[str]:
        """On the teacher's momentum."""
        return self.schedule.notes("moco", steps)

    def after_step(self, network: Network) -> None:
        """The teacher follows."""
        self.teacher.follow(self.momentum, network, self.projector)

    def embed(self, network: Network, batch: PairBatch) -> Embedded:
        """The student's unit vectors of all views, and the teacher's of the global ones."""
        keys = Keys.cat(group.keys for group in batch.groups)
        online = self.predictor(self.projector(torch.cat([network(group.voxels).pooled for group in batch.groups])))
        teacher, projector = self.teacher.copies
        with torch.no_grad():
            target = projector(teacher(batch.main.voxels).pooled)
        return {"online": Rows(online, keys), "target": Rows(target, batch.main.keys)}

    def loss(self, embedded: Embedded, relating: Relating) -> Loss:
        """Every view against the teacher's vectors of all ranks, and those of the queue, which then takes the former in."""
        online, target = embedded["online"], embedded["target"]
        return contrast(online, relating, self.temperature, "all", False, targets=target, only_kept_repel=self.queue_size > 0)
