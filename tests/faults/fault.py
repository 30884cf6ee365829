"""One row of the matrix of faults, and how it is met."""

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
    """One thing that goes wrong.

    number   in the list of faults that medcl3d survives
    what     in a few words
    build    makes it in a folder; gets the folder and a prepared store
    command  what is typed there
    says     texts that must stand in what the user is told: where, what, what would do
    code     how the command ends
    told     where it is told: stderr, or a file
    """

    number: int
    what: str
    build: Callable[[Path, Path], object]
    command: Sequence[str]
    says: Sequence[str]
    code: int
    told: str = "output"
    without: Sequence[str] = ()

    @property
    def name(self) -> str:
        """For pytest."""
        return f"{self.number}-{self.what.replace(' ', '_')}"


def meet(fault: Fault, folder: Path, tiny: Path) -> tuple[int, str]:
    """Build a fault in an empty folder, run its command there, and return the exit code and all that was told."""
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
    told = output.getvalue()
    return int(code or 0), told if fault.told == "output" else told + (folder / fault.told).read_text()
