"""Atomic writes: to a temporary file in the same folder, synced, then renamed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from medcl3d.core.errors import MachineError

PARTIAL = ".part"


@contextmanager
def open_atomic(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that replaces `path` if the block succeeds, and is removed if it raises.

    Raises MachineError if the disk is full or the folder cannot be written.
    """
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(PARTIAL, f".{path.name[:80]}.", path.parent)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        problem = f"cannot write: {error.strerror or error}"
        raise MachineError(path, problem, "free some space or choose another folder") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def remove_partial_files(folder: Path) -> None:
    """Remove what a killed process left of its atomic writes. The folder must be locked by the caller."""
    for path in folder.rglob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with open_atomic(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically. ValueError for NaN, which is not valid JSON."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def append_line(path: Path, line: str) -> None:
    """Append a line of UTF-8 text, after the end of a line that a kill or a full disk left incomplete."""
    with path.open("ab+") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        incomplete = file.read(1) not in (b"", b"\n")
        file.write(("\n" * incomplete + line + "\n").encode())
