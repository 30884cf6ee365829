"""The bytes of a file of somebody's, which may be no file: a pipe, a device, a folder or a loop of links never blocks."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from medcl3d.errors import DataError

FETCH = "fetch the content with `datalad get .`"


def open_regular(path: Path, needed: str = "") -> int:
    """A file descriptor; links are followed.

    needed  what the file should be, for the message where it cannot be had

    Raises DataError for what is absent, no file, or not to be read by this user.
    """
    remedy = f"; {needed}" if needed else ""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise DataError(f"{path}: {why_absent(path)}{remedy}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}{remedy}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise DataError(f"{path}: is {'a folder' if stat.S_ISDIR(mode) else 'a pipe or a device'}, not a file{remedy}")
    return descriptor


def why_absent(path: Path) -> str:
    """What to say of a path at which no file can be opened: nothing is there, or a link whose file is not, as in a clone by datalad."""
    if not path.is_symlink():
        return "there is no such file"
    return f"is a link whose file is not there; {FETCH if is_annexed(path) else 'fetch the file, or correct the link'}"


def is_annexed(path: Path) -> bool:
    """Whether a path is a link into an annex, where git-annex and datalad keep the content of large files."""
    return path.is_symlink() and ".git/annex/objects/" in os.readlink(path).replace(os.sep, "/")


def read_regular(path: Path, needed: str = "") -> bytes:
    """The whole content of a file, opened as by `open_regular`."""
    with os.fdopen(open_regular(path, needed), "rb") as file:
        return file.read()
