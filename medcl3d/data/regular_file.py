"""The bytes of a file of somebody's, which may be no file: a pipe, a device, a folder or a loop of links never blocks."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from medcl3d.errors import DataError


def open_regular(path: Path, needed: str = "") -> int:
    """A file descriptor; links are followed.

    needed  what the file should be, for the message where it cannot be had

    Raises DataError for what is absent, no file, or not to be read by this user.
    """
    remedy = f"; {needed}" if needed else ""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file{remedy}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}{remedy}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise DataError(f"{path}: is {'a folder' if stat.S_ISDIR(mode) else 'a pipe or a device'}, not a file{remedy}")
    return descriptor


def read_regular(path: Path, needed: str = "") -> bytes:
    """The whole content of a file, opened as by `open_regular`."""
    with os.fdopen(open_regular(path, needed), "rb") as file:
        return file.read()
