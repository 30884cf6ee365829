"""A teacher: a copy of the student that follows it slowly and never descends."""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import nn


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


def momentum_at(step: int, steps: int, start: float) -> float:
    """From `start` to 1 along half a cosine. Source: BYOL (Grill et al., 2020, section 3.2)."""
    return 1 - (1 - start) * (math.cos(math.pi * step / steps) + 1) / 2
