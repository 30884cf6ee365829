"""Locks: one start of a comparison at a time, and no run that another process is still executing."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from medcl3d.comparison.run.launch import STARTED
from medcl3d.io.atomic import write_json
from medcl3d.io.folder_lock import lock_folder
from medcl3d.io.json_file import read_record

LOCK, HOLDER = ".compare.lock", ".compare.json"


@contextmanager
def exclusive_start(folder: Path) -> Iterator[None]:
    """Lock a comparison's folder. ConfigError, with the holder, if another start has locked it."""
    lock = lock_folder(folder, LOCK, lambda: read_record(folder / HOLDER), "a comparison in this folder")
    try:
        write_json(folder / HOLDER, {"pid": os.getpid(), "host": socket.gethostname()})
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process is running in this run folder: of a killed comparison, or started by hand."""
    return any(is_taken(folder / name) for name in (STARTED, ".lock"))


def is_taken(path: Path) -> bool:
    """Whether a process holds a lock file."""
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False
