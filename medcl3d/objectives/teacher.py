"""A teacher: a copy of the student that follows it slowly and never descends."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

MAX_LEFT = 0.01  # share of the random start that a chosen momentum leaves in the teacher at the end
MUCH_LEFT = 0.1  # share from which on a given momentum is warned of

Momentum = Annotated[float, Field(ge=0, lt=1)]


class Teacher(nn.Module):
    """Copies of some modules, as an exponential moving average of theirs; part of a checkpoint, not of the optimiser.

    Source: mean teacher (Tarvainen and Valpola, NeurIPS 2017), as in MoCo, BYOL and DINO.
    """

    def __init__(self, *modules: nn.Module):
        super().__init__()
        self.copies = nn.ModuleList(deepcopy(module) for module in modules)
        self.requires_grad_(False)

    @torch.no_grad()
    def follow(self, momentum: float, *modules: nn.Module) -> None:
        """teacher = momentum x teacher + (1 - momentum) x student; buffers, as running statistics, are taken over."""
        for copy, module in zip(self.copies, modules, strict=True):
            for mine, theirs in zip(copy.parameters(), module.parameters(), strict=True):
                mine.lerp_(theirs.to(mine.dtype), 1 - momentum)
            for kept, now in zip(copy.buffers(), module.buffers(), strict=True):
                kept.copy_(now)


@dataclass(frozen=True)
class Schedule:
    """Momentum of a teacher at each step of a run.

    given      at the start; None: chosen from the number of steps
    published  the largest that is chosen, which is the value of the paper
    rises      up to 1 at the end along half a cosine; otherwise it stays as it starts

    After S steps the product of all momenta is the share of the random start that is left in the teacher. It is at most
    exp(-sum(1 - m)), and sum(1 - m) is (1 - start) (S + 1) / 2 along half a cosine and (1 - start) S without it. So the
    largest start that is sure to leave at most 1% is 1 - 2 ln(100) / (S + 1), or 1 - ln(100) / S without the cosine.
    """

    given: float | None
    published: float
    rises: bool = True

    def start(self, steps: int) -> float:
        """The momentum of the first of `steps` steps."""
        if self.given is not None:
            return self.given
        slowed = (steps + 1) / 2 if self.rises else steps
        return min(self.published, max(0.0, 1 + math.log(MAX_LEFT) / slowed))

    def at(self, step: int, steps: int) -> float:
        """The momentum of one step."""
        start = self.start(steps)
        return momentum_at(step, steps, start) if self.rises else start

    def left(self, steps: int) -> float:
        """The share of the random start that is left in the teacher after `steps` steps."""
        return math.prod(self.at(step, steps) for step in range(steps))

    def notes(self, objective: str, steps: int) -> list[str]:
        """What to report before training: the momentum that was chosen, or that a given one leaves too much of the start."""
        chosen = Schedule(None, self.published, self.rises).start(steps)
        if self.given is None:
            return [f"objective.{objective}: momentum = {chosen:.4g} at the start, chosen from train.steps = {steps}"]
        left = self.left(steps)
        if left <= MUCH_LEFT:
            return []
        return [
            f"warning: objective.{objective}: momentum = {self.given:g}: {left:.0%} of the teacher's random start is left in it after "
            f"train.steps = {steps}; leave momentum out ({chosen:.4g} is then chosen), or lower it"
        ]


def momentum_at(step: int, steps: int, start: float) -> float:
    """From `start` to 1 along half a cosine. Source: BYOL (Grill et al., 2020, section 3.2)."""
    return 1 - (1 - start) * (math.cos(math.pi * step / steps) + 1) / 2
