"""The environment of a run: device and state of the checkout.

No host name, since weights are shared with this record.
"""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
GIT_SECONDS = 10.0


def device_name() -> str:
    """Name of the GPU of this process, else of the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    model_name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return model_name or platform.processor() or platform.machine()


def checkout(root: Path = ROOT) -> dict[str, Any]:
    """The commit of a checkout, and whether tracked files differ from it; None if unknown."""
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    # Untracked files are excluded: git would walk through all runs and data inside the checkout.
    status = _git(root, "status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def _git(root: Path, *command: str) -> str | None:
    """Output of git; None if git is missing, fails, or takes too long."""
    try:
        # Without optional locks git writes nothing, so that concurrent runs do not conflict.
        arguments = ["git", "--no-optional-locks", "-C", str(root), *command]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
