"""Process scans in parallel, with a progress bar and an early stop if too many are refused."""

from __future__ import annotations

import itertools
import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from medcl3d.core.errors import MachineError
from medcl3d.io.progress import titled_bar
from medcl3d.preprocessing.scan import prepare_scan
from medcl3d.preprocessing.scan_task import Outcome, ScanTask

T = TypeVar("T")
R = TypeVar("R")


def run_tasks(tasks: Sequence[ScanTask], store: Path, workers: int, allowed: int) -> dict[str, Outcome]:
    """Outcomes by scan; stops early, with fewer outcomes, if more than `allowed` are refused."""
    outcomes: dict[str, Outcome] = {}
    refused = 0
    with titled_bar("preparing scans", len(tasks)) as advance:
        run = partial(prepare_scan, store=store)
        for outcome in in_parallel(run, tasks, workers, lambda task: str(task.image)):
            outcomes[outcome.scan] = outcome
            refused += outcome.status == "refused"
            advance(f"preparing scans, {refused} refused" if refused else "preparing scans")
            if refused > allowed:
                break
    return outcomes


def in_parallel(
    function: Callable[[T], R], items: Sequence[T], workers: int, name_of: Callable[[T], str]
) -> Iterator[R]:
    """Results in order of completion, from `workers` processes (0: one per processor, up to 8).

    MachineError if a process was killed; `name_of` names an item in its message.
    """
    workers = min(workers or min(8, os.cpu_count() or 1), len(items))
    if workers <= 1:
        return map(function, items)
    return _in_processes(function, items, workers, name_of)


def _in_processes(
    function: Callable[[T], R], items: Sequence[T], workers: int, name_of: Callable[[T], str]
) -> Iterator[R]:
    """Like `in_parallel`; at most two items per worker are in progress, which bounds the memory."""
    # Fork is unsafe with the threads of torch and the progress bar.
    context = multiprocessing.get_context("spawn")
    pending: dict[Future[R], T] = {}
    waiting = iter(items)
    item = items[0]
    try:
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    except OSError as error:  # its locks are in shared memory
        problem = f"{workers} processes cannot be started ({error.strerror})"
        raise MachineError(f"{problem}: is /dev/shm full? workers=1 does not need it") from None
    with pool:
        try:
            while True:
                with _without_main_module():
                    for item in itertools.islice(waiting, 2 * workers - len(pending)):
                        pending[pool.submit(function, item)] = item
                if not pending:
                    return
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    item = pending.pop(future)
                    yield future.result()
        except BrokenProcessPool:
            problem = f"a worker was killed, perhaps for lack of memory, near {name_of(item)}"
            raise MachineError("", problem, "use fewer workers") from None
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Let started processes not import the user's script.

    They would otherwise run it again, unless its code is below ``if __name__ == "__main__":``; and they
    need only this package.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _end_with_parent() -> None:
    """Exit a worker if its parent was killed, instead of waiting for tasks for ever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
