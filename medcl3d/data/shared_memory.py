"""Room in shared memory, through which worker processes hand on their batches: looked at before they start."""

from __future__ import annotations

import os
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

from medcl3d.data.known_sets import as_size
from medcl3d.errors import MachineError

PLACE = Path("/dev/shm")  # nosec B108: where Linux keeps it; other systems have none there
PREFETCHED = 2  # batches that each worker prepares ahead, as DataLoader does by default
PAGE = 4096  # what each tensor takes at least
HELD = 2  # batches beside these: the one in use, and the one on its way to a device
REMEDY = "in docker use --shm-size=8g, elsewhere train.workers=0"


def free_shared_bytes() -> int | None:
    """Bytes that are free in shared memory, None if this system does not say."""
    try:
        found = os.statvfs(PLACE)
    except (OSError, AttributeError):
        return None
    return found.f_bavail * found.f_frsize


def refuse_too_little(batch_bytes: int, workers: int) -> None:
    """MachineError if what the workers of all ranks on this machine prepare ahead does not fit into shared memory.

    batch_bytes  of one batch that a worker hands on, as `num_bytes` has it
    """
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    needed, free = ranks * (PREFETCHED * workers + HELD) * batch_bytes, free_shared_bytes()
    if workers and free is not None and free < needed:
        others = f" of {ranks} ranks" if ranks > 1 else ""
        raise MachineError(
            f"shared memory is full or too small: {workers} workers{others} need {as_size(needed)} in {PLACE}, {as_size(free)} are free; "
            f"{REMEDY}"
        )


def shared_memory_now(batch_bytes: int) -> str:
    """For a message on workers that hand on nothing: that shared memory is full, if it has no room for one batch; else ""."""
    free = free_shared_bytes()
    if free is None or free >= max(batch_bytes, 1):
        return ""
    return f"shared memory is full: a batch needs {as_size(batch_bytes)} in {PLACE}, {as_size(free)} are free; {REMEDY}"


def num_bytes(batch: Any) -> int:
    """Bytes that the tensors in a batch take in shared memory: a tensor, or containers and dataclasses of them."""
    if isinstance(batch, torch.Tensor):
        return -(-batch.untyped_storage().nbytes() // PAGE) * PAGE
    if is_dataclass(batch):
        return sum(num_bytes(getattr(batch, field.name)) for field in fields(batch))
    if isinstance(batch, dict):
        return sum(map(num_bytes, batch.values()))
    return sum(map(num_bytes, batch)) if isinstance(batch, list | tuple) else 0
