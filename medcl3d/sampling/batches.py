"""Batches prepared ahead by worker processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from medcl3d.core.errors import MachineError
from medcl3d.io.shared_memory import REMEDY, num_bytes, refuse_too_little, shared_memory_now

WORKER_TIMEOUT_S = 300


def batches_from(dataset: Dataset[Any], steps: int, workers: int, start: int) -> Iterator[Any]:
    """Items `start` .. `steps` - 1 in order, prepared ahead by worker processes (0: by this one).

    With workers, this process makes the first item, to measure the shared memory that they need.

    MachineError if shared memory is too small for the workers, or if one of them dies, with the likely cause.
    """
    first = [dataset[start]] if workers and start < steps else []
    size = num_bytes(first)
    refuse_too_little(size, workers)
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(start + len(first), steps),
        num_workers=workers,
        timeout=WORKER_TIMEOUT_S if workers else 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_ignore_stop_signals,
    )
    try:
        ahead = iter(loader)  # the workers begin
        while first:
            yield first.pop()
        yield from ahead
    except RuntimeError as error:
        if "DataLoader" not in str(error):
            raise
        first_line = str(error).splitlines()[0]
        full = shared_memory_now(size)
        # What ended the worker is either the error itself or the one that it was raised from.
        if full or "shared memory" in f"{error} {error.__cause__}":
            raise MachineError(first_line, full or f"shared memory is full; {REMEDY}") from error
        raise MachineError(
            problem=f"{first_line}; was it out of memory, or killed? Fewer train.workers need less",
            remedy="the same command resumes",
        ) from error


def _ignore_stop_signals(_: int) -> None:
    """A terminal sends Ctrl-C and SIGHUP to workers too; the main process then still needs them to save."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
