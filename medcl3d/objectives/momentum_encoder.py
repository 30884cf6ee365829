"""Momentum encoder (teacher): an exponential moving average of the student."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

MAX_LEFT = 0.01  # fraction of the random initialisation that a chosen momentum leaves in the teacher
MUCH_LEFT = 0.1  # fraction above which a given momentum causes a warning

Momentum = Annotated[float, Field(ge=0, lt=1)]


class MomentumEncoder(nn.Module):
    """Exponential moving averages of modules; saved in checkpoints, not updated by the optimiser.

    Source: mean teacher (Tarvainen and Valpola, NeurIPS 2017), as in MoCo, BYOL and DINO.
    """

    def __init__(self, *modules: nn.Module):
        super().__init__()
        self.copies = nn.ModuleList(deepcopy(module) for module in modules)
        self.requires_grad_(False)

    @torch.no_grad()
    def follow(self, momentum: float, *modules: nn.Module) -> None:
        """teacher = momentum x teacher + (1 - momentum) x student; buffers are copied."""
        for copy, module in zip(self.copies, modules, strict=True):
            for average, student in zip(copy.parameters(), module.parameters(), strict=True):
                average.lerp_(student.to(average.dtype), 1 - momentum)
            for buffer, student_buffer in zip(copy.buffers(), module.buffers(), strict=True):
                buffer.copy_(student_buffer)


@dataclass(frozen=True)
class Schedule:
    """Momentum at each step of a run.

    given      at the start; None: chosen from the number of steps
    published  the paper's value, and the largest that is chosen
    rises      to 1 at the end along half a cosine; otherwise constant

    After S steps the product of all momenta is the fraction of the random initialisation that is left in the
    teacher. It is at most exp(-sum(1 - m)), and sum(1 - m) is (1 - start) (S + 1) / 2 along half a cosine and
    (1 - start) S if constant. The largest start for which this bound is at most 1% is therefore 1 - 2 ln(100)
    / (S + 1), or 1 - ln(100) / S if constant.
    """

    given: float | None
    published: float
    rises: bool = True

    def start(self, steps: int) -> float:
        """The momentum of the first of `steps` steps."""
        if self.given is not None:
            return self.given
        effective_steps = (steps + 1) / 2 if self.rises else steps
        return min(self.published, max(0.0, 1 + math.log(MAX_LEFT) / effective_steps))

    def at(self, step: int, steps: int) -> float:
        """The momentum of one step."""
        start = self.start(steps)
        return momentum_at(step, steps, start) if self.rises else start

    def left(self, steps: int) -> float:
        """The fraction of the random initialisation that is left in the teacher after `steps` steps."""
        return math.prod(self.at(step, steps) for step in range(steps))

    def notes(self, objective: str, steps: int) -> list[str]:
        """The chosen momentum, or a warning if a given one leaves too much of the random initialisation."""
        chosen = Schedule(None, self.published, self.rises).start(steps)
        if self.given is None:
            return [
                f"objective.{objective}: momentum = {chosen:.4g} at the start, "
                f"chosen from train.steps = {steps}"
            ]
        left = self.left(steps)
        if left <= MUCH_LEFT:
            return []
        return [
            f"warning: objective.{objective}: momentum = {self.given:g}: {left:.0%} of the teacher's random "
            "initialisation "
            f"is left in it after train.steps = {steps}; leave momentum out ({chosen:.4g} is then chosen), "
            "or lower it"
        ]


def momentum_at(step: int, steps: int, start: float) -> float:
    """From `start` to 1 along half a cosine. Source: BYOL (Grill et al., 2020, section 3.2)."""
    return 1 - (1 - start) * (math.cos(math.pi * step / steps) + 1) / 2
