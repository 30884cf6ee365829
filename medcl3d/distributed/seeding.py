"""Explicit randomness: each draw is seeded by run seed, epoch, sample and purpose."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """The purpose of a draw. Views use VIEW + their number."""

    PLAN = 0
    SAMPLE = 1
    POINTS = 2
    PARTNER = 3
    MASK = 4
    LABELLED = 5
    PLACEBO = 6
    PLACEBO_POINTS = 7
    VIEW = 16


def generator(seed: int, epoch: int, sample: int, stream: int) -> np.random.Generator:
    """The generator of one draw: the same on any rank and worker, and after a resume."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch, sample, stream]))


def seed_weights(seed: int) -> None:
    """Seed torch, so that the next weights are the same on every rank and in every run with this seed."""
    torch.manual_seed(seed)
