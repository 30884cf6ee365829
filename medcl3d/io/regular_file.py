"""Read untrusted paths without blocking on pipes, devices, folders or loops of links."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from medcl3d.core.errors import DataError

FETCH = "fetch the content with `datalad get .`"


def open_regular(path: Path, needed: str = "") -> int:
    """Open a regular file and return its descriptor; links are followed.

    needed  the expected content, for the message if the file cannot be opened

    Raises DataError if it is missing, not a regular file, or not readable by this user.
    """
    remedy = f"; {needed}" if needed else ""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise DataError(path, f"{why_absent(path)}{remedy}") from None
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror}{remedy}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise DataError(path, f"is {kind}, not a file{remedy}")
    return descriptor


def why_absent(path: Path) -> str:
    """Describe a missing file: it does not exist, or it is a broken link, as in a clone by datalad."""
    if not path.is_symlink():
        return "there is no such file"
    remedy = FETCH if is_annexed(path) else "fetch the file, or correct the link"
    return f"is a link to a missing file; {remedy}"


def is_annexed(path: Path) -> bool:
    """Whether a path is a link into a git-annex, where datalad stores the content of large files."""
    return path.is_symlink() and ".git/annex/objects/" in os.readlink(path).replace(os.sep, "/")


def read_regular(path: Path, needed: str = "") -> bytes:
    """Read a whole file, opened with `open_regular`."""
    with os.fdopen(open_regular(path, needed), "rb") as file:
        return file.read()
