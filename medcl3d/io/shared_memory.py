"""Check the size of shared memory, through which worker processes pass batches, before they start."""

from __future__ import annotations

import os
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

from medcl3d.core.errors import MachineError
from medcl3d.io.disk_space import format_size

PLACE = Path("/dev/shm")  # nosec B108: its path on Linux; it does not exist on other systems
PREFETCHED = 2  # batches that each worker prepares ahead, the default of DataLoader
PAGE = 4096  # minimum bytes per tensor
HELD = 2  # further batches: the one in use, and the one being copied to a device
REMEDY = "in docker use --shm-size=8g, elsewhere train.workers=0"


def free_shared_bytes() -> int | None:
    """Free bytes of shared memory; None if unknown on this system."""
    try:
        status = os.statvfs(PLACE)
    except (OSError, AttributeError):
        return None
    return status.f_bavail * status.f_frsize


def refuse_too_little(batch_bytes: int, workers: int) -> None:
    """MachineError if the batches prefetched by the workers of all ranks here exceed shared memory.

    batch_bytes  `num_bytes` of one batch of a worker
    """
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    needed, free = ranks * (PREFETCHED * workers + HELD) * batch_bytes, free_shared_bytes()
    if workers and free is not None and free < needed:
        users = f"{workers} workers" + (f" of {ranks} ranks" if ranks > 1 else "")
        sizes = f"need {format_size(needed)} in {PLACE}, {format_size(free)} are free"
        raise MachineError("", f"shared memory is full or too small: {users} {sizes}", REMEDY)


def shared_memory_now(batch_bytes: int) -> str:
    """For the message on failing workers: "shared memory is full" if one batch does not fit, else ""."""
    free = free_shared_bytes()
    if free is None or free >= max(batch_bytes, 1):
        return ""
    needed = f"a batch needs {format_size(batch_bytes)} in {PLACE}"
    return f"shared memory is full: {needed}, {format_size(free)} are free; {REMEDY}"


def num_bytes(batch: Any) -> int:
    """Bytes of a batch in shared memory: a tensor, or nested containers and dataclasses of tensors."""
    if isinstance(batch, torch.Tensor):
        return -(-batch.untyped_storage().nbytes() // PAGE) * PAGE
    if is_dataclass(batch):
        return sum(num_bytes(getattr(batch, field.name)) for field in fields(batch))
    if isinstance(batch, dict):
        return sum(map(num_bytes, batch.values()))
    return sum(map(num_bytes, batch)) if isinstance(batch, list | tuple) else 0
