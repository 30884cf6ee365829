"""Check disk space and write access before a run, without leaving files behind."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from medcl3d.core.errors import MachineError


def require_writable(path: Path, name: str, *, is_file: bool = False) -> None:
    """MachineError if a folder (or a file's folder) cannot be created or written.

    name: the field or option with this path
    """
    folder = nearest_folder(path.parent if is_file else path)
    setting, field = f"{name} = {path}", "" if name.startswith("-") else name
    if not folder.is_dir():
        raise MachineError(setting, f"{folder} is not a folder", "choose another path", field=field)
    try:
        tempfile.TemporaryDirectory(prefix=".medcl3d-", dir=folder).cleanup()  # only an attempt shows it
    except OSError as error:
        problem = f"cannot write in {folder} ({error.strerror})"
        raise MachineError(setting, problem, "choose another path", field=field) from None


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(nearest_folder(folder)).free


def nearest_folder(path: Path) -> Path:
    """The path itself or its nearest parent that exists (it may not be a folder)."""
    path = path.absolute()
    return next(parent for parent in (path, *path.parents) if os.path.lexists(parent))


def format_size(num_bytes: int) -> str:
    """Bytes in a suitable unit, three digits."""
    size, unit = float(num_bytes), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"
