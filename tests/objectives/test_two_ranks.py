"""Every objective on two ranks and in one process, with local views and without: loss, gradients, and all
that it keeps, after
each of two steps."""

from __future__ import annotations

import gc
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from tests.objectives.small import NAMES, Step, batch_of

SAMPLES = 6
STEPS = 2
NUM_LOCAL = (0, 2)


def two_steps(name: str, samples: range, num_local: int, wrap: Any = lambda model: model) -> dict[str, Any]:
    """Gradients and losses of two steps of gradient descent, and the final state."""
    model = Step(name)
    model.train()
    wrapped = wrap(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    gradients, losses = [], []
    for step in range(STEPS):
        if hasattr(model.objective, "before_step"):
            model.objective.before_step(step, 10)
        optimizer.zero_grad()
        wrapped(batch_of(samples, num_local, seed=step)).backward()
        gradients.append({key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None})
        losses.append(model.metrics["loss"])
        optimizer.step()
        if hasattr(model.objective, "after_step"):
            model.objective.after_step(model.network)
    del wrapped
    return {"gradients": gradients, "losses": losses, "state": model.state_dict()}


def run_rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    mine = range(rank * SAMPLES // world, (rank + 1) * SAMPLES // world)
    for name, num_local in product(NAMES, NUM_LOCAL):
        torch.save(
            two_steps(name, mine, num_local, DistributedDataParallel),
            f"{folder}/{name}_{num_local}_{rank}.pt",
        )
        gc.collect()
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, args=(2, str(folder)), nprocs=2)
    return folder


@pytest.mark.parametrize("num_local", NUM_LOCAL)
@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_equal_one_process(name: str, num_local: int, ranks: Path) -> None:
    one_process = two_steps(name, range(SAMPLES), num_local)
    assert len(one_process["gradients"][0]) > 4 and any(
        (g != 0).any() for g in one_process["gradients"][1].values()
    )
    for rank in range(2):
        found = torch.load(ranks / f"{name}_{num_local}_{rank}.pt", weights_only=True)
        torch.testing.assert_close(found["losses"], one_process["losses"], atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(found["gradients"], one_process["gradients"], atol=1e-9, rtol=1e-7)
        torch.testing.assert_close(found["state"], one_process["state"], atol=1e-9, rtol=1e-7, equal_nan=True)
