"""Whether a folder can be written and how much room its disk has, found out before anything is, and with nothing left there."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from medcl3d.errors import MachineError


def refuse_unwritable(path: Path, name: str, *, is_file: bool = False) -> None:
    """MachineError where a folder (or that of a file) is not there and cannot be made, or nothing can be written into it.

    name: what chose it
    """
    there = nearest_folder(path.parent if is_file else path)
    told = f"{name} = {path}"
    if not there.is_dir():
        raise MachineError(f"{told}: {there} is no folder; choose another place")
    try:
        with tempfile.TemporaryDirectory(prefix=".medcl3d-", dir=there):  # what a file system allows, only a try tells
            pass
    except OSError as error:
        raise MachineError(f"{told}: nothing can be written in {there} ({error.strerror}); choose another place") from None


def free_bytes(folder: Path) -> int:
    """Of the disk on which a folder lies, or will lie."""
    return shutil.disk_usage(nearest_folder(folder)).free


def nearest_folder(path: Path) -> Path:
    """The nearest folder above a path, or itself, that is there (or what lies there in the place of a folder)."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if os.path.lexists(place))
