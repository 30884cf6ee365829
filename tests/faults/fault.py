"""One row of the table of faults, and how to trigger it."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECK = ("check", "manifest.csv")
PREPARE = ("prepare", "csv", ".", "--out", "out", "workers=1")
PRETRAIN = ("pretrain", "c.yaml", "--check")
DICOM = ("prepare", "dicom", "in", "--out", "out", "workers=1")
CHECK_DICOM = ("check", "in", "source=dicom", "workers=1")


@dataclass(frozen=True)
class Fault:
    """A fault of user input and the expected message.

    number   in the list of faults that medcl3d handles
    what     short description
    build    creates it; called with an empty folder and a prepared store
    command  run in the folder
    texts    that the message must contain: place, problem, remedy
    code     exit code of the command
    source   of the message: the output, or also a file
    """

    number: int
    what: str
    build: Callable[[Path, Path], object]
    command: Sequence[str]
    texts: Sequence[str]
    code: int
    source: str = "output"
    without: Sequence[str] = ()

    @property
    def name(self) -> str:
        """The name of the test case."""
        return f"{self.number}-{self.what.replace(' ', '_')}"


def meet(fault: Fault, folder: Path, tiny: Path) -> tuple[int, str]:
    """Build a fault in an empty folder and run its command there; returns the exit code and the messages."""
    from medcl3d.cli import main

    fault.build(folder, tiny)
    here, output = Path.cwd(), io.StringIO()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            main(fault.command)
        code: Any = 0
    except SystemExit as end:
        code = end.code
    finally:
        os.chdir(here)
    text = output.getvalue()
    return int(code or 0), text if fault.source == "output" else text + (folder / fault.source).read_text()
