"""Keep what was freed: a training step asks for the same blocks again and again. And how much that was."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path
from typing import Literal

import torch

# Names and numbers of glibc's malloc.h; the first cannot be set higher than 32 MiB.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 << 20
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process keep memory that it frees, instead of giving it back to the system after every operation.

    Every activation of a CPU step otherwise comes as fresh pages that the kernel has to clear: about a seventh
    of a step's time on 32^3 patches. True where it took effect (Linux with glibc).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD) and mallopt(M_TRIM_THRESHOLD, NEVER))


def peak_memory_mb(device: torch.device) -> float:
    """MiB that this process has held at most: of a CUDA device's memory in tensors, else of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    told = process_peak_mb("self")
    if told is not None:  # getrusage counts what the parent had before this program replaced it
        return told
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def process_peak_mb(process: int | Literal["self"]) -> float | None:
    """MiB of the machine's memory that a process has held at most; None where it is gone, or where the system does not tell."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) / 2**10 for line in status.splitlines() if line.startswith("VmHWM")), None)
