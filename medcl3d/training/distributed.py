"""Ranks: who they are, and how vectors and keys travel between them with right gradients.

Every function works without a process group, where the world is one rank.

    rank 0: z [N, D]  --+
                        +--> gather: [W * N, D] on every rank, in rank order
    rank 1: z [N, D]  --+         backward: the sum over ranks of the gradients, this rank's rows of it
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from medcl3d.errors import MachineError
from medcl3d.training.memory import keep_freed_memory
from medcl3d.types import Keys


def world_size() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which rank this is."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def process_group(timeout_s: float = 1800.0) -> Iterator[torch.device]:
    """Join the ranks that torchrun started (or be alone), and yield this rank's device. MachineError where they cannot meet."""
    keep_freed_memory()
    local = int(os.environ.get("LOCAL_RANK", 0))
    if torch.cuda.is_available():
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    alone = "RANK" not in os.environ or dist.is_initialized()
    if alone:
        yield device
        return
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout_s))
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise MachineError(
            f"rank {os.environ['RANK']} could not join the others at {address}: {error}; is the address right and the port free?"
        ) from None
    try:
        yield device
        wait_for_all()  # rank 0 still writes when the others are through; who leaves first pulls the group from under the rest
    finally:
        # DistributedDataParallel lies in reference cycles and holds the group: freed after it, at the end of the
        # interpreter, its threads would still run and abort the process.
        gc.collect()
        dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    """All-gather whose backward adds what every rank's loss says of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(world_size())]
        dist.all_gather(parts, local.contiguous())
        ctx.rows = len(local)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def gather(local: Tensor) -> Tensor:
    """``[N, ...]`` of each rank -> ``[W * N, ...]`` on every rank; N must agree. Gradients flow back."""
    return _Gather.apply(local) if world_size() > 1 else local


def gather_keys(keys: Keys) -> Keys:
    """The keys of all ranks, in rank order."""
    if world_size() == 1:
        return keys
    matrix = keys.matrix()
    parts = [torch.empty_like(matrix) for _ in range(world_size())]
    dist.all_gather(parts, matrix.contiguous())
    return keys.with_matrix(torch.cat(parts))


def all_sum(value: Tensor) -> Tensor:
    """The sum over ranks, without gradient."""
    if world_size() > 1:
        value = value.detach().clone()
        dist.all_reduce(value)
    return value


def all_mean(value: Tensor) -> Tensor:
    """The mean over ranks, without gradient."""
    return all_sum(value) / world_size()


def global_mean(local: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """This rank's sum and its weight -> what this rank descends, and the global mean to log.

    DistributedDataParallel averages gradients over ranks, so the local sum is scaled by the world size.
    """
    total = all_sum(weight.detach())
    return local * world_size() / total, all_sum(local.detach()) / total


def wait_for_all() -> None:
    """Return once every rank has come here."""
    if world_size() > 1:
        dist.barrier()


def from_rank_zero(value: Any) -> Any:
    """What rank 0 says, on every rank (a small picklable object of our own)."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def say(text: str) -> None:
    """Tell the user, once."""
    if rank() == 0:
        print(text, flush=True)
