"""The same run on another number of ranks: equal samples, and equal loss and gradients up to rounding."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medcl3d.config.loading import parse
from medcl3d.distributed.collectives import process_group, rank, world_size
from medcl3d.pretraining import parts
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.parts import assemble
from medcl3d.training.loop import in_parallel
from tests.drills.processes import Command, environments_of_ranks
from tests.pretraining.test_pretrain import config_of

SAMPLES = 8
DTYPES = (torch.float32, torch.float64)
# Gradients differed by 7e-6 on two ranks in float32, whose rounding is 2e9 times that of float64.
LARGEST = {torch.float32: 5e-5, torch.float64: 1e-13}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ranks are forks, as in tests/drills")


def in_float64(value: Any) -> Any:
    """The same batch with numbers of double precision."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value) if field.init]
        return replace(value, **{name: in_float64(getattr(value, name)) for name in names})
    return type(value)(map(in_float64, value)) if isinstance(value, list | tuple) else value


def first_step(store: Path, file: Path, variables: Mapping[str, str], per_rank: bool) -> None:
    """Write crops, loss and gradients of the first step, for each precision; SAMPLES in all, or per rank."""
    os.environ.update(variables)
    torch.set_num_threads(1)
    found: dict[torch.dtype, Any] = {}
    make_views = parts.make_views
    with process_group(60):
        for dtype in DTYPES:
            samples = SAMPLES * world_size() if per_rank else SAMPLES
            config = config_of(store, Path("unused"), "augmented_views", "simclr", samples_per_step=samples)
            pretraining = assemble(parse(config, PretrainConfig, "test"))
            learner = pretraining.learner
            if dtype == torch.float64:
                parts.make_views = lambda raw, recipe: in_float64(make_views(raw, recipe))
                learner.double()
            learner.announce(True)
            raw = pretraining.dataset()[0]
            wrapped = in_parallel(learner) if world_size() > 1 else learner
            loss = wrapped(raw)
            loss.value.backward()
            found[dtype] = {
                "crops": raw.main.crops,
                "loss": loss.metrics["loss"],
                "negatives": float(loss.metrics["effective_negatives"]),
                "gradients": [p.grad.clone() for p in learner.parameters() if p.grad is not None],
            }
        torch.save(found, file.with_name(f"{file.name}_{rank()}"))


def steps(store: Path, folder: Path, ranks: int, per_rank: bool = False) -> list[dict[torch.dtype, Any]]:
    """What each rank wrote."""
    file = folder / f"{ranks}_{per_rank}"
    commands = [
        Command(first_step, [store, file, variables, per_rank], folder / "unused")
        for variables in environments_of_ranks(ranks)
    ]
    assert [command.wait() for command in commands] == [0] * ranks
    return [torch.load(f"{file}_{number}", weights_only=True) for number in range(ranks)]


def distance(first: Tensor, second: Tensor) -> float:
    """Largest difference, relative to the largest number."""
    return float((first - second).abs().max() / first.abs().max())


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_take_the_same_samples_and_the_same_step_up_to_rounding(
    tiny_store: Path, tmp_path: Path, ranks: int
) -> None:
    """In float64 the difference is a billionth of that in float32: it is rounding, and nothing else."""
    (alone,) = steps(tiny_store, tmp_path, 1)
    shared = steps(tiny_store, tmp_path, ranks)
    for dtype, largest in LARGEST.items():
        assert torch.equal(alone[dtype]["crops"], torch.cat([one[dtype]["crops"] for one in shared]))
        for one in shared:
            differences = [distance(alone[dtype]["loss"], one[dtype]["loss"])]
            together = [torch.cat([g.flatten() for g in step[dtype]["gradients"]]) for step in (alone, one)]
            differences.append(distance(*together))
            print(f"{ranks} ranks, {dtype}: loss {differences[0]:.1e}, gradient {differences[1]:.1e}")
            assert max(differences) <= largest


@pytest.mark.slow
def test_negatives_of_an_anchor_grow_with_the_ranks(tiny_store: Path, tmp_path: Path) -> None:
    """All views of the other samples of all ranks, for the same number of samples per rank."""
    for ranks in (1, 4):
        for step in steps(tiny_store, tmp_path, ranks, per_rank=True):
            assert step[torch.float32]["negatives"] == 2 * (SAMPLES * ranks - 1)
