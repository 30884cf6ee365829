"""Batches prepared ahead by worker processes."""

from __future__ import annotations

import errno
import multiprocessing.queues
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from itertools import chain
from types import FrameType
from typing import Any

import torch
from torch._C import _error_if_any_worker_fails
from torch.utils.data import DataLoader, Dataset

from medcl3d.core.errors import MachineError
from medcl3d.io.shared_memory import REMEDY, num_bytes, refuse_too_little, shared_memory_now
from medcl3d.io.signals import handled

WORKER_TIMEOUT_S = 300
FULL = errno.ENOSPC
"""Exit code of a worker for which shared memory has no space."""


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
        worker_init_fn=_in_worker,
        # Its draw would otherwise change the state of the network's dropout, once more after each resume.
        generator=torch.Generator().manual_seed(torch.initial_seed()),
    )
    before = signal.getsignal(signal.SIGCHLD)
    try:
        ahead = iter(loader)  # the workers begin
        items = chain((first.pop() for _ in range(len(first))), ahead)
        yield from _failing_in_time(items, before) if workers else items
    except (RuntimeError, ConnectionError, EOFError) as error:
        # Of a worker that dies while it passes on a batch, only the connection is lost.
        is_lost = bool(workers) and not isinstance(error, RuntimeError)
        if not is_lost and "DataLoader" not in str(error):
            raise
        first_line = "a worker ended" if is_lost else str(error).splitlines()[0].strip()
        full = shared_memory_now(size)
        # What ended the worker is either the error itself or the one that it was raised from.
        reasons = f"{error} {error.__cause__}"
        if full or "shared memory" in reasons or f"exit code {FULL}." in reasons:
            raise MachineError(first_line, full or f"shared memory is full; {REMEDY}") from error
        raise MachineError(
            problem=f"{first_line}; was it out of memory, or killed? Fewer train.workers need less",
            remedy="the same command resumes",
        ) from error


def _failing_in_time(ahead: Iterator[Any], before: Any) -> Iterator[Any]:
    """The same items, and torch's error of a worker that died only while one is requested.

    torch raises it in a handler of SIGCHLD, so anywhere: also where other errors are expected, and while the
    run ends. before: the handler before torch's, which is set again afterwards.
    """
    is_requested = has_ended = False

    def handler(_: int, __: FrameType | None) -> None:
        nonlocal has_ended
        has_ended = True
        if is_requested:
            _error_if_any_worker_fails()

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    with handled([signal.SIGCHLD], handler):
        while True:
            is_requested = True
            try:
                if has_ended:
                    _error_if_any_worker_fails()
                item = next(ahead, None)
            finally:
                is_requested = False
            if item is None:
                return
            yield item


def _in_worker(_: int) -> None:
    """Prepare a worker process."""
    # A terminal sends Ctrl-C and SIGHUP to workers too; the main process then still needs them to save.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # A batch that cannot be passed on would be lost, and the main process would wait for it.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]


def _end_worker(error: Exception, batch: Any) -> None:
    """End this worker, so that the main process receives a signal."""
    if "shared memory" not in str(error):
        traceback.print_exception(error)
    os._exit(FULL if "shared memory" in str(error) else 1)
