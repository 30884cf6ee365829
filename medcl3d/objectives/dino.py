"""DINO: self-distillation over prototypes, from global to all views."""

from __future__ import annotations

from typing import Annotated, ClassVar, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from medcl3d.config.field_types import Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt
from medcl3d.core.batch import PairBatch
from medcl3d.core.embeddings import Embedded, Embeddings, Loss
from medcl3d.core.keys import Keys
from medcl3d.distributed.collectives import all_sum, gather, gather_keys
from medcl3d.encoders.network import Network
from medcl3d.losses.clusters import cross_entropy_sum, scores_of
from medcl3d.losses.pairs import koleo
from medcl3d.objectives import OBJECTIVES
from medcl3d.objectives.momentum_encoder import Momentum, MomentumEncoder, Schedule
from medcl3d.objectives.partners import mean_loss, relate_to_all
from medcl3d.objectives.projector import HeadNorm, Projector
from medcl3d.objectives.relating import Relating


@OBJECTIVES.register("dino", renamed={"warmup_share": "warmup_fraction"})
class DINO(nn.Module):
    """Cross-entropy of student and momentum encoder over `num_prototypes` prototypes, weighted by P.

    The student gets all views, the momentum encoder (teacher) the global ones: use `multi_crop` for local
    views. M has no effect.

    num_prototypes        vectors whose similarities to an embedding give its scores
    student_temperature, teacher_temperature  divide the scores before the softmax
    teacher_temperature_start  teacher's temperature at the start, which changes linearly to
                          `teacher_temperature`
    warmup_fraction       over this fraction of the steps
    center_momentum       of the mean subtracted from the teacher's scores, so that no prototype dominates; 1
                          keeps it at 0
    koleo                 weight of the KoLeo term on the student's global features, which spreads them (0:
                          off)
    freeze_steps          number of first steps in which prototypes do not change
    momentum              at the start, rising to 1 at the end along half a cosine. Default: chosen from the
                          number of steps S, 1 - 2 ln(100) / (S + 1) and at most 0.996 as published, so that
                          at most 1% of the teacher's random initialisation is left at the end
    norm                  normalisation between the layers of the heads

    Other fields as in `simclr`.
    Source: Caron et al., ICCV 2021, eq. 1 to 4 and algorithm 1; koleo: Oquab et al., TMLR 2024.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"positive"})
    ignores_queue: ClassVar[bool] = True
    decodes: ClassVar[bool] = False
    center: Float[Tensor, " K"]

    def __init__(
        self,
        network: Network,
        *,
        num_prototypes: PositiveInt = 1024,
        student_temperature: Positive = 0.1,
        teacher_temperature: Positive = 0.04,
        teacher_temperature_start: Positive = 0.04,
        warmup_fraction: Fraction = 0.3,
        center_momentum: Fraction = 0.9,
        koleo: NonNegative = 0.0,
        freeze_steps: NonNegativeInt = 0,
        momentum: Momentum | None = None,
        norm: HeadNorm = "batch",
        hidden_dim: PositiveInt = 256,
        out_dim: PositiveInt = 128,
        num_layers: Annotated[int, Field(ge=1, le=8)] = 3,
    ):
        super().__init__()
        self.dim, self.koleo, self.center_momentum = out_dim, koleo, center_momentum
        self.student_temperature = student_temperature
        self.temperatures, self.warmup_fraction = (
            (teacher_temperature_start, teacher_temperature),
            warmup_fraction,
        )
        self.teacher_temperature, self.freeze_steps, self.frozen = (
            teacher_temperature_start,
            freeze_steps,
            freeze_steps > 0,
        )
        self.schedule = Schedule(momentum, published=0.996)
        self.momentum = self.schedule.published
        self.projector = Projector(network.num_features, hidden_dim, out_dim, num_layers, norm)
        self.words = nn.Linear(out_dim, num_prototypes, bias=False)
        self.register_buffer("center", torch.zeros(num_prototypes))
        self.teacher = MomentumEncoder(network, self.projector, self.words)

    def before_step(self, step: int, steps: int) -> None:
        """Update momentum, temperature and freezing of the prototypes."""
        first, last = self.temperatures
        progress = min(1.0, step / max(1.0, self.warmup_fraction * steps))
        self.teacher_temperature = first + (last - first) * progress
        self.momentum, self.frozen = self.schedule.at(step, steps), step < self.freeze_steps

    def notes(self, steps: int) -> list[str]:
        """Notes on the momentum."""
        return self.schedule.notes("dino", steps)

    def after_step(self, network: Network) -> None:
        """Update the momentum encoder."""
        self.teacher.follow(self.momentum, network, self.projector, self.words)

    def embed(self, network: Network, batch: PairBatch) -> Embedded:
        """The student's embeddings of all views, and the teacher's scores of the global ones."""
        student = self.projector(torch.cat([network(group.voxels).pooled for group in batch.groups]))
        teacher, projector, prototypes = self.teacher.copies
        with torch.no_grad():
            target = scores_of(projector(teacher(batch.main.voxels).pooled), cast(Tensor, prototypes.weight))
        keys = Keys.cat(group.keys for group in batch.groups)
        return {"online": Embeddings(student, keys), "target": Embeddings(target, batch.main.keys)}

    def loss(self, embedded: Embedded, relating: Relating) -> Loss:
        """The mean over pairs of a student's and a teacher's view, weighted by P; updates the centre."""
        online, target = embedded["online"], embedded["target"]
        global_views = online[: len(target.keys)]  # global views come first
        related = relate_to_all(online, Embeddings(global_views.z.detach(), global_views.keys), relating)
        # The relation is of the student's embeddings; the targets are the teacher's scores of the same views.
        targets = ((gather(target.z)[related.order] - self.center) / self.teacher_temperature).softmax(1)
        weight = self.words.weight
        weight = weight * 0 + weight.detach() if self.frozen else weight
        log_p = F.log_softmax(scores_of(online.z, weight) / self.student_temperature, dim=1)
        positive = related.relation.positive[:, : len(targets)].to(log_p.dtype)
        found = mean_loss(
            cross_entropy_sum(log_p, targets.to(log_p.dtype), positive), positive.sum(), related.numbers
        )
        if self.koleo:
            spread = koleo(gather(global_views.z), gather_keys(global_views.keys).sample)
            own = spread.detach()
            metrics = found.metrics | {"loss": found.metrics["loss"] + self.koleo * own, "koleo": own}
            found = Loss(found.value + self.koleo * spread, metrics, found.required)
        self._update_center(target.z)
        return found

    @torch.no_grad()
    def _update_center(self, scores: Float[Tensor, "N K"]) -> None:
        """Move the centre towards the mean of this batch's scores over all ranks, if that is finite."""
        count = scores.new_full((1,), float(len(scores)))
        summed = all_sum(torch.cat([scores.sum(0), count]))
        mean = (summed[:-1] / summed[-1]).to(self.center.dtype)
        moved = self.center.lerp(mean, 1 - self.center_momentum)
        self.center.copy_(torch.where(torch.isfinite(mean).all(), moved, self.center))
