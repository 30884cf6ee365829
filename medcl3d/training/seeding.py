"""Randomness is explicit: every draw has a name, and its name is its seed."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What a draw is for. Views take VIEW + their number."""

    PLAN = 0
    SAMPLE = 1
    POINTS = 2
    PARTNER = 3
    MASK = 4
    LABELLED = 5
    VIEW = 16


def generator(seed: int, epoch: int, sample: int, stream: int) -> np.random.Generator:
    """The generator of one draw: the same on any rank, in any worker, before and after a resume."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch, sample, stream]))


def seed_weights(seed: int) -> None:
    """Make the weights drawn next the same on every rank and in every run of this seed."""
    torch.manual_seed(seed)
