"""Many scans at once: processes that prepare them, a bar that shows it, an early stop where too many are bad."""

from __future__ import annotations

import itertools
import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from medcl3d.data.scan import Outcome, ScanTask, prepare_scan
from medcl3d.errors import MachineError


def run_tasks(tasks: Sequence[ScanTask], store: Path, workers: int, allowed: int) -> dict[str, Outcome]:
    """All outcomes by scan; fewer where too many were refused, since then it stops."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    workers = min(workers or min(8, os.cpu_count() or 1), len(tasks))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    outcomes: dict[str, Outcome] = {}
    refused = 0
    work = _here(tasks, store) if workers <= 1 else _in_processes(tasks, store, workers)
    with Progress(*columns, disable=not sys.stderr.isatty(), console=Console(stderr=True)) as progress:
        bar = progress.add_task("preparing scans", total=len(tasks))
        for outcome in work:
            outcomes[outcome.scan] = outcome
            refused += outcome.status == "refused"
            progress.update(bar, advance=1, description=f"preparing scans, {refused} refused" if refused else "preparing scans")
            if refused > allowed:
                break
    return outcomes


def _here(tasks: Sequence[ScanTask], store: Path) -> Iterator[Outcome]:
    for task in tasks:
        yield prepare_scan(task, store)


def _in_processes(tasks: Sequence[ScanTask], store: Path, workers: int) -> Iterator[Outcome]:
    """Outcomes as they come; at most two scans a worker are under way, which bounds the memory."""
    context = multiprocessing.get_context("spawn")  # torch and the progress bar run threads, which fork would tear
    pending: dict[Future[Outcome], ScanTask] = {}
    waiting = iter(tasks)
    task = tasks[0]
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        try:
            while True:
                for task in itertools.islice(waiting, 2 * workers - len(pending)):
                    pending[pool.submit(prepare_scan, task, store)] = task
                if not pending:
                    return
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    task = pending.pop(future)
                    yield future.result()
        except BrokenProcessPool:
            raise MachineError(f"a worker was killed, perhaps for memory, near {task.image}; use fewer workers") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """A worker whose parent was killed ends too, instead of waiting for tasks for ever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
