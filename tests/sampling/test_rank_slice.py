"""The slices of several ranks, concatenated, are the samples of one process."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from medcl3d.config.field_types import Choice
from medcl3d.distributed.seeding import Stream, generator
from medcl3d.sampling.plan import Plan, RankSlice, stacked
from medcl3d.sampling.raw_batch import on_device
from medcl3d.views import VIEWS

PLAN = Plan(np.arange(10, 19), 6, seed=3)


def test_the_slices_of_three_ranks_are_the_batch_of_one() -> None:
    whole, parts = RankSlice(PLAN, 0, 1), [RankSlice(PLAN, rank, 3) for rank in range(3)]
    assert whole.size == 6 and [part.size for part in parts] == [2, 2, 2]
    for step in range(4):
        rows = [(part, i) for part in parts for i in range(part.size)]
        assert [part.anchor(step, i) for part, i in rows] == PLAN.samples(step)[1].tolist()
        assert [part.number(step, i) for part, i in rows] == list(range(6 * step, 6 * step + 6))
        draws = [part.generator(step, i, Stream.SAMPLE).random() for part, i in rows]
        assert draws == [whole.generator(step, i, Stream.SAMPLE).random() for i in range(6)]
        assert len(set(draws)) == 6


def test_a_generator_is_named_by_the_epoch_and_the_sample_in_it() -> None:
    """One batch is an epoch here, as 9 anchors hold one batch of 6."""
    part = RankSlice(PLAN, 2, 3)
    assert PLAN.steps_per_epoch == 1
    assert part.generator(5, 1, Stream.VIEW).random() == generator(3, 5, 5, Stream.VIEW).random()


def test_parameters_of_ranks_are_slices_of_those_of_one_process() -> None:
    recipe = VIEWS.build(Choice("mri"))
    whole = RankSlice(PLAN, 0, 1).parameters(2, recipe, (8, 8, 8))
    second = RankSlice(PLAN, 1, 2).parameters(2, recipe, (8, 8, 8))
    assert whole.keys() == second.keys()
    assert all(torch.equal(whole[name][3:], second[name]) for name in whole)


def test_parameters_are_stacked_by_name() -> None:
    found = stacked([{"a": 1.5, "b": np.zeros(2)}, {"a": 2.5, "b": np.ones(2)}])
    assert found["a"].tolist() == [1.5, 2.5] and found["b"].tolist() == [[0, 0], [1, 1]]


@dataclass(frozen=True)
class Mixed:
    """A batch of tensors, of a dictionary of tensors, and of other values."""

    voxels: Tensor
    parameters: dict[str, Tensor]
    scans: tuple[int, ...]


def test_the_named_tensors_of_a_batch_are_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)  # it needs an accelerator
    moved = on_device(Mixed(torch.ones(2), {"scale": torch.ones(2)}, (3, 4)), torch.device("meta"), "voxels")
    assert moved.voxels.is_meta and not moved.parameters["scale"].is_meta and moved.scans == (3, 4)
