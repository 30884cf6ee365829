"""Freed memory is kept: the next step of the same shape gets no new pages from the kernel."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from medcl3d.core.errors import MachineError
from medcl3d.distributed.memory import memory_errors

PROBE = """
import resource, sys, torch
from medcl3d.distributed.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def step():
    blocks = [torch.ones(1_000_000) for _ in range(8)]
    return sum(float(block[0]) for block in blocks)
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    """Page faults of five steps, from a malloc threshold at which glibc keeps no blocks."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, mode], capture_output=True, text=True, check=True, env=environment
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_pages_are_not_requested_again() -> None:
    assert faults("keep") < 0.1 * faults("default")


def test_a_full_gpu_is_reported_in_one_line_with_the_fields_to_lower() -> None:
    text = (
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB of which "
        "1.02 GiB is free.\nSee documentation for Memory Management"
    )
    expected = "the GPU is out of memory: 2.50 GiB more were requested of 79.10 GiB in all; lower one field"
    with pytest.raises(MachineError) as found, memory_errors("lower one field"):
        raise torch.OutOfMemoryError(text)
    assert str(found.value) == expected
    expected = r"^the GPU is out of memory: no details; lower one field$"
    with pytest.raises(MachineError, match=expected), memory_errors("lower one field"):
        raise torch.OutOfMemoryError("no details")


def test_full_main_memory_is_reported_in_one_line_with_the_fields_to_lower() -> None:
    with (
        pytest.raises(
            MachineError, match=r"^main memory is full: .* TB more were requested; lower one field$"
        ),
        memory_errors("lower one field"),
    ):
        torch.empty(1 << 44)  # more than any machine has, 70 TB
    with (
        pytest.raises(MachineError, match=r"^main memory is full: Unable to allocate .*; lower one field$"),
        memory_errors("lower one field"),
    ):
        np.empty(1 << 60, np.uint8)
    with pytest.raises(RuntimeError, match="of the code"), memory_errors("lower one field"):
        raise RuntimeError("an error of the code")
