"""Benchmarks that a stopped command has finished, so that the same command resumes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from medcl3d.distributed.environment import checkout
from medcl3d.io.atomic import write_text


class Finished:
    """The finished ones of `chosen` benchmarks, in a file beside `out` that is deleted after the last.

    It counts for the same benchmarks and the same commit only.
    """

    def __init__(self, out: Path, chosen: Sequence[str]):
        self.path = out.with_suffix(".unfinished.json")
        self._command = {"benchmarks": list(chosen), "commit": checkout()["commit"]}
        self.names: list[str] = []
        if self.path.is_file():
            before = json.loads(self.path.read_text())
            if before["command"] == self._command:
                self.names = before["finished"]

    def add(self, name: str) -> None:
        """Record a finished benchmark."""
        self.names.append(name)
        if set(self._command["benchmarks"]) <= set(self.names):
            self.path.unlink(missing_ok=True)
        else:
            text = json.dumps({"command": self._command, "finished": self.names}, indent=2)
            write_text(self.path, text + "\n")
