"""Process group and collectives: gather vectors and keys across ranks, with correct gradients.

Every function also works without a process group, as a single rank.

    rank 0: z [N, D]  --+
                        +--> gather: [W * N, D] on every rank, in rank order
    rank 1: z [N, D]  --+         backward: gradients summed over ranks, restricted to this rank's rows
"""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from medcl3d.core.errors import ConfigError, MachineError
from medcl3d.core.keys import Keys
from medcl3d.distributed.memory import keep_freed_memory, memory_errors

TIMEOUT_S = 600.0
POLL_S = 60.0
LEFT, MEETING = "medcl3d/rank_zero_left", "medcl3d/meeting"
_MEETINGS = itertools.count()
T = TypeVar("T")
# The names from torch 2.13 on, and those before.
_ALL_GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_REDUCE_SCATTER = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def world_size() -> int:
    """Number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Index of this rank."""
    return dist.get_rank() if dist.is_initialized() else 0


def require_one_process(command: str) -> None:
    """ConfigError under torchrun, for a command whose ranks would all do the same work."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        remedy = "start it without torchrun; with several GPUs, one process for each, on parts of the scans"
        raise ConfigError(problem=f"{command} runs in one process", remedy=remedy)


@contextmanager
def process_group(timeout_s: float = TIMEOUT_S) -> Iterator[torch.device]:
    """Join the process group of torchrun, if any, and yield this rank's device.

    timeout_s  seconds after which a rank that waits for another one gives up. At the end of the block ranks
               wait for rank 0 without a limit, since it measures or writes alone

    MachineError if joining fails, or if another rank does not answer.
    """
    keep_freed_memory()
    device = device_of_rank()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    no_group = "RANK" not in os.environ or dist.is_initialized()
    if no_group:
        with memory_errors("lower data.patch_size, or close other programs"):
            yield device
        return
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            timeout=timedelta(seconds=timeout_s),
            device_id=device if device.type == "cuda" else None,
        )
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise MachineError(
            problem=f"rank {os.environ['RANK']} could not join the process group at {address}: {error}",
            remedy="check that the address is right and the port is free",
        ) from None
    try:
        with memory_errors("lower data.patch_size, or close other programs"):
            yield device
        _wait_for_rank_zero()
        # Rank 0 writes longer than the others; a rank that leaves early would destroy the group.
        wait_for_all()
    except RuntimeError as error:
        if not _is_lost_contact(error):
            raise
        first_line = str(error).splitlines()[0]
        raise MachineError(
            problem=f"rank {os.environ['RANK']} waited {timeout_s:g} s for another rank, or lost its "
            f"connection ({first_line})",
            remedy="look at the output of the other ranks and at the network; the same commands resume",
        ) from error
    finally:
        # DistributedDataParallel is part of reference cycles and holds the group. If it is freed after the
        # group, when the interpreter ends, its threads still run and abort the process.
        gc.collect()
        dist.destroy_process_group()


def _is_lost_contact(error: RuntimeError) -> bool:
    """Whether a collective failed because of another rank or the network."""
    words = ("gloo/", "Timed out", "Connection closed", "Connection reset", "NCCL")
    return isinstance(error, dist.DistError) or any(text in str(error) for text in words)


def _wait_for_rank_zero() -> None:
    """Return once rank 0 has called this function: without a time limit, unlike a barrier."""
    store = dist.distributed_c10d._get_default_store()
    if rank() == 0:
        store.set(LEFT, "")
    _wait_for(store, [LEFT])


def _wait_for(store: Any, keys: list[str]) -> None:
    """Return once the store has these keys, without a time limit."""
    while True:
        try:
            store.wait(keys, timedelta(seconds=POLL_S))
            return
        except dist.DistStoreError:  # the time is over; a lost store is a DistNetworkError
            continue


def device_of_rank() -> torch.device:
    """This process's GPU, by LOCAL_RANK; the processor without GPUs. MachineError if ranks outnumber GPUs."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local, number = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local < number:
        return torch.device("cuda", local)
    if number == 1 and "SLURM_GPUS_PER_TASK" in os.environ:  # each task sees its own GPU only
        return torch.device("cuda", 0)
    raise MachineError(
        problem=f"the process with LOCAL_RANK {local} has no GPU: {number} visible on this node",
        remedy=f"start at most {number} processes per node (--nproc_per_node {number})",
    )


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums the gradients of all ranks for this rank's rows."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        return _gathered(local)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        own = gradient.new_empty((len(gradient) // world_size(), *gradient.shape[1:]))
        _REDUCE_SCATTER(own, gradient.contiguous())
        return own


def _gathered(local: Tensor) -> Tensor:
    """The tensors of all ranks, one after the other, without a copy of each."""
    result = local.new_empty((len(local) * world_size(), *local.shape[1:]))
    _ALL_GATHER(result, local.contiguous())
    return result


def gather(local: Tensor) -> Tensor:
    """Differentiable all-gather: ``[N, ...]`` per rank -> ``[W * N, ...]`` on every rank; N must agree."""
    return _Gather.apply(local) if world_size() > 1 else local


def gather_keys(keys: Keys) -> Keys:
    """The keys of all ranks, in rank order."""
    if world_size() == 1:
        return keys
    return keys.with_matrix(_gathered(keys.matrix()))


def all_sum(value: Tensor) -> Tensor:
    """Sum over ranks, without gradient."""
    if world_size() > 1:
        value = value.detach().clone()
        dist.all_reduce(value)
    return value


def all_sums(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums over ranks of small tensors by name, without gradient, in one collective.

    They are added in float64 and keep their shape and dtype. So the sum of two numbers in float32 has the
    same bits as if added in float32: float64 has more than twice its digits (Figueroa, SIGNUM 1995).
    """
    if world_size() == 1:
        return {name: value.detach() for name, value in values.items()}
    flat = torch.cat([value.detach().flatten().double() for value in values.values()])
    parts = all_sum(flat).split([value.numel() for value in values.values()])
    pairs = zip(values.items(), parts, strict=True)
    return {name: part.reshape(value.shape).to(value.dtype) for (name, value), part in pairs}


def buffers_of_rank_zero(model: nn.Module) -> None:
    """Copy the buffers of rank 0 to all ranks; a batch norm has the statistics of its rank's batches."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def all_mean(value: Tensor) -> Tensor:
    """Mean over ranks, without gradient."""
    return all_sum(value) / world_size()


def global_mean(local: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """From this rank's sum and weight: the loss to backpropagate on this rank, and the global mean to log.

    DistributedDataParallel averages gradients over ranks, so the local sum is scaled by the world size.
    """
    summed = all_sums({"weight": weight, "loss": local})
    return local * world_size() / summed["weight"], summed["loss"] / summed["weight"]


def own_part(items: Sequence[T]) -> Sequence[T]:
    """The items of this rank: every one of them, if there is one rank."""
    return items[rank() :: world_size()]


def of_all_ranks(own: list[T]) -> list[T]:
    """The results of all ranks in the order of the items, from those of each rank's `own_part`.

    Every rank must call it. Ranks wait for each other without a time limit.
    """
    if world_size() == 1:
        return own
    _wait_without_limit()
    parts: list[list[T]] = [[] for _ in range(world_size())]
    dist.all_gather_object(parts, own)
    return [parts[i % len(parts)][i // len(parts)] for i in range(sum(map(len, parts)))]


def _wait_without_limit() -> None:
    """Return once every rank has called this function: without a time limit, unlike a barrier."""
    number, store = next(_MEETINGS), dist.distributed_c10d._get_default_store()
    store.set(f"{MEETING}/{number}/{rank()}", "")
    _wait_for(store, [f"{MEETING}/{number}/{other}" for other in range(world_size())])


def wait_for_all() -> None:
    """Barrier: return once every rank has called this function."""
    if world_size() > 1:
        dist.barrier()


def from_rank_zero(value: Any) -> Any:
    """Broadcast a small picklable object from rank 0 to all ranks."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def say(text: str) -> None:
    """Print on rank 0 only."""
    if rank() == 0:
        print(text, flush=True)
