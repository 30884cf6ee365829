"""The learning rate over a run, and what is decayed."""

from __future__ import annotations

from itertools import pairwise

import pytest
from torch import nn

from medcl3d.training.optim import adamw, lr_factor


def test_rate_rises_linearly_and_falls_by_half_a_cosine() -> None:
    rates = [lr_factor(step, 110, 10) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1 and rates[60] == pytest.approx(0.5) and rates[110] == pytest.approx(0)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_norms_and_biases_are_not_decayed() -> None:
    model = nn.Sequential(nn.Conv3d(1, 4, 3), nn.GroupNorm(2, 4))
    decayed, free = adamw(model, 1e-3, 0.05).param_groups
    assert [p.ndim for p in decayed["params"]] == [5] and decayed["weight_decay"] == 0.05
    assert len(free["params"]) == 3 and free["weight_decay"] == 0
