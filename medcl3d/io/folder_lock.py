"""Locks of folders: one process at a time works in a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from medcl3d.core.errors import ConfigError, MachineError


def lock_folder(folder: Path, name: str, holder: Callable[[], Mapping[str, Any]], what: str) -> FileLock:
    """Create a folder and lock it by a file `name`, until the result is released.

    holder  `pid` and `host` of the process that has the lock, {} if unknown
    what    what that process runs, for the message

    ConfigError if another process has locked it. MachineError if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / name)
        lock.acquire(timeout=0)
        return lock
    except Timeout:
        found = holder()
        who = f"pid {found.get('pid')} on {found.get('host')}" if found else "another process"
        remedy = "wait until it ends, or set another out_dir"
        raise ConfigError(problem=f"{who} is running {what}", remedy=remedy, place=folder) from None
    except OSError as error:
        raise MachineError(
            folder, f"cannot be written ({error.strerror})", "set out_dir to a writable folder"
        ) from None
