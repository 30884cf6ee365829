"""Memory of a process: reuse of freed blocks, which every training step allocates again, and peak memory."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from medcl3d.core.errors import MachineError
from medcl3d.io.disk_space import format_size

# Names and numbers of glibc's malloc.h; the first cannot be set higher than 32 MiB.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 << 20
CGROUP, CGROUP_FILES = Path("/sys/fs/cgroup"), ("memory.max", "memory.current")
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Make this process keep freed memory instead of returning it to the system after every operation.

    Otherwise the kernel clears new pages for every activation of a CPU step, which takes about a seventh of
    the time of a step on 32^3 patches. Returns True if it took effect (Linux with glibc).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD) and mallopt(M_TRIM_THRESHOLD, NEVER)
    )


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory of this process in MiB: in tensors on a CUDA device, else in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = process_peak_mb("self")
    if peak is not None:  # getrusage also counts memory of the parent from before exec
        return peak
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


@contextmanager
def memory_errors(remedy: str) -> Iterator[None]:
    """MachineError of one line, with what was requested, instead of torch's error of full memory."""
    try:
        yield
    except MemoryError as error:  # of Python and NumPy
        what = " ".join(str(error).split()) or "more was requested"
        raise MachineError(problem=f"main memory is full: {what}", remedy=remedy) from error
    except torch.OutOfMemoryError as error:
        text = str(error)
        requested = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", text)
        capacity = re.search(r"total capacity of ([\d.]+ \w+)", text)
        what = f"{requested[1]} more were requested" if requested else " ".join(text.split())
        of = f" of {capacity[1]} in all" if capacity else ""
        raise MachineError(problem=f"the GPU is out of memory: {what}{of}", remedy=remedy) from error
    except RuntimeError as error:
        requested = re.search(r"DefaultCPUAllocator: .*tried to allocate (\d+) bytes", str(error))
        if requested is None:
            raise
        what = f"{format_size(int(requested[1]))} more were requested"
        raise MachineError(problem=f"main memory is full: {what}", remedy=remedy) from error


def process_peak_mb(process: int | Literal["self"]) -> float | None:
    """Peak main memory of a process in MiB.

    None if the process has ended, or the system does not report it.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return None
    return next(
        (int(line.split()[1]) / 2**10 for line in status.splitlines() if line.startswith("VmHWM")), None
    )


def available_bytes() -> int | None:
    """Main memory that is available to new processes, within the limit of a container; None if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    try:
        limit, used = (int((CGROUP / name).read_text(encoding="ascii")) for name in CGROUP_FILES)
    except (OSError, ValueError):  # no container, or no limit ("max")
        return free
    return min(free, max(0, limit - used))
