"""Standard output of a long computation, which continues if the reader of its output ends."""

from __future__ import annotations

import os
from typing import Any, TextIO


class LosableOutput:
    """A text stream that discards its output from the first failed write on.

    A write fails if the reader of a pipe has ended (`medcl3d compare ... | head`), if the terminal was
    closed, or if the disk of a log file is full. rich and click would then end the process with exit code 1,
    without a message.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or discard."""
        try:
            return self._stream.write(text)
        except OSError:
            self._discard()
            return len(text)

    def flush(self) -> None:
        """Flush, or discard."""
        try:
            self._stream.flush()
        except OSError:
            self._discard()

    def _discard(self) -> None:
        """Replace the file by the null device, which also takes what the stream still holds at exit."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)
