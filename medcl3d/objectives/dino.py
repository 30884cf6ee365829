"""A student says of small views what a teacher says of large ones, in words of its own."""

from __future__ import annotations

from typing import Annotated, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from medcl3d.encoders.network import Network
from medcl3d.losses.clusters import cross_entropy_sum, scores_of
from medcl3d.losses.pairs import koleo
from medcl3d.objectives import OBJECTIVES
from medcl3d.objectives.partners import relate_to_all
from medcl3d.objectives.projector import HeadNorm, Projector
from medcl3d.objectives.relating import Relating
from medcl3d.objectives.teacher import Momentum, Schedule, Teacher
from medcl3d.registry import Count, Fraction, NonNegative, Positive, Whole
from medcl3d.training.distributed import all_sum, gather, gather_keys, global_mean
from medcl3d.types import Embedded, Keys, Loss, PairBatch, Rows


@OBJECTIVES.register("dino")
class DINO(nn.Module):
    """Cross-entropy between a student's and a teacher's distribution over `num_prototypes` words, for pairs weighted by P.

    The student sees all views, the teacher the global ones: use `multi_crop` for local views. M has no effect.

    student_temperature, teacher_temperature  of the two distributions; the teacher's rises from `teacher_temperature_start`
    warmup_share          to it over this share of the steps
    center_momentum       of the mean that is taken off the teacher's words, so that no word takes all; 1 leaves it at 0
    koleo                 weight of the spread of the student's global features (0: off)
    freeze_steps          so long the words themselves stay as they were drawn
    momentum              of the teacher at the start, up to 1 at the end along half a cosine. Default: chosen from the number of
                          steps S, 1 - 2 ln(100) / (S + 1) and at most 0.996 as published, so that at most 1% of its random
                          start is left at the end

    Source: Caron et al., ICCV 2021, eq. 1 to 4 and algorithm 1; koleo: Oquab et al., TMLR 2024.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"positive"})
    decodes: ClassVar[bool] = False
    center: Tensor

    def __init__(
        self,
        network: Network,
        *,
        num_prototypes: Count = 1024,
        student_temperature: Positive = 0.1,
        teacher_temperature: Positive = 0.04,
        teacher_temperature_start: Positive = 0.04,
        warmup_share: Fraction = 0.3,
        center_momentum: Fraction = 0.9,
        koleo: NonNegative = 0.0,
        freeze_steps: Whole = 0,
        momentum: Momentum | None = None,
        norm: HeadNorm = "batch",
        hidden_dim: Count = 256,
        out_dim: Count = 128,
        num_layers: Annotated[int, Field(ge=1, le=8)] = 3,
    ):
        super().__init__()
        self.dim, self.koleo, self.center_momentum = out_dim, koleo, center_momentum
        self.student_temperature = student_temperature
        self.temperatures, self.warmup_share = (teacher_temperature_start, teacher_temperature), warmup_share
        self.teacher_temperature, self.freeze_steps, self.frozen = teacher_temperature_start, freeze_steps, freeze_steps > 0
        self.schedule = Schedule(momentum, published=0.996)
        self.momentum = self.schedule.published
        self.projector = Projector(network.num_features, hidden_dim, out_dim, num_layers, norm)
        self.words = nn.Linear(out_dim, num_prototypes, bias=False)
        self.register_buffer("center", torch.zeros(num_prototypes))
        self.teacher = Teacher(network, self.projector, self.words)

    def before_step(self, step: int, steps: int) -> None:
        """The teacher slows down, and says less sharply what it says."""
        first, last = self.temperatures
        done = min(1.0, step / max(1.0, self.warmup_share * steps))
        self.teacher_temperature = first + (last - first) * done
        self.momentum, self.frozen = self.schedule.at(step, steps), step < self.freeze_steps

    def notes(self, steps: int) -> list[str]:
        """On the teacher's momentum."""
        return self.schedule.notes("dino", steps)

    def after_step(self, network: Network) -> None:
        """The teacher follows."""
        self.teacher.follow(self.momentum, network, self.projector, self.words)

    def embed(self, network: Network, batch: PairBatch) -> Embedded:
        """The student's vectors of all views, and the teacher's scores of the global ones."""
        student = self.projector(torch.cat([network(group.voxels).pooled for group in batch.groups]))
        teacher, projector, words = self.teacher.copies
        with torch.no_grad():
            target = scores_of(projector(teacher(batch.main.voxels).pooled), cast(Tensor, words.weight))
        keys = Keys.cat(group.keys for group in batch.groups)
        return {"online": Rows(student, keys), "target": Rows(target, batch.main.keys)}

    def loss(self, embedded: Embedded, relating: Relating) -> Loss:
        """The mean over pairs of a student's view and a teacher's one, weighted by P; the centre moves on."""
        online, target = embedded["online"], embedded["target"]
        large = online[torch.isin(online.keys.view, target.keys.view)]
        related = relate_to_all(online, Rows(large.z.detach(), large.keys), relating)
        # The teacher's scores in the place of the student's vectors that were related.
        said = ((gather(target.z)[related.order] - self.center) / self.teacher_temperature).softmax(1)
        words = self.words.weight if not self.frozen else self.words.weight * 0 + self.words.weight.detach()
        log_p = F.log_softmax(scores_of(online.z, words) / self.student_temperature, dim=1)
        positive = related.relation.positive[:, : len(said)].to(log_p.dtype)
        value, mean = global_mean(cross_entropy_sum(log_p, said.to(log_p.dtype), positive), positive.sum())
        metrics = {"loss": mean} | related.metrics
        if self.koleo:
            spread = koleo(gather(large.z), gather_keys(large.keys).sample)
            value, metrics = value + self.koleo * spread, metrics | {"loss": mean + self.koleo * spread.detach(), "koleo": spread.detach()}
        self._move_center(target.z)
        return Loss(value, metrics)

    @torch.no_grad()
    def _move_center(self, scores: Tensor) -> None:
        """Towards the mean of this batch's scores, over all ranks; what is not finite moves nothing."""
        count = scores.new_tensor(float(len(scores)))
        mean = all_sum(scores.sum(0)) / all_sum(count)
        if bool(torch.isfinite(mean).all()):
            self.center.lerp_(mean.to(self.center.dtype), 1 - self.center_momentum)
