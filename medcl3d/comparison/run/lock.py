"""Locks: one start of a comparison at a time, and no run that another process is still executing."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from medcl3d.comparison.run.launch import STARTED, read_json
from medcl3d.core.errors import ConfigError, MachineError
from medcl3d.io.atomic import write_json

LOCK, HOLDER = ".compare.lock", ".compare.json"


@contextmanager
def exclusive_start(folder: Path) -> Iterator[None]:
    """Lock a comparison's folder. ConfigError, with the holder, if another start has locked it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        holder = read_json(folder / HOLDER)
        who = f"pid {holder['pid']} on {holder['host']}" if holder else "another process"
        problem = f"{who} is running a comparison in this folder"
        remedy = "wait for it, or set another out_dir"
        raise ConfigError(problem=problem, remedy=remedy, place=folder) from None
    except OSError as error:
        problem = f"cannot be written ({error.strerror})"
        raise MachineError(folder, problem, "set out_dir to a writable folder") from None
    try:
        write_json(folder / HOLDER, {"pid": os.getpid(), "host": socket.gethostname()})
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process is running in this run folder: of a killed comparison, or started by hand."""
    return any(_taken(folder / name) for name in (STARTED, ".lock"))


def _taken(path: Path) -> bool:
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False
