"""What a run runs on: its device, its threads, the state of its checkout. No host name: this travels with weights."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
GIT_SECONDS = 10.0


def device_name() -> str:
    """The name of this process's GPU, else of the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def checkout(root: Path = ROOT) -> dict[str, Any]:
    """The commit of a checkout, and whether tracked files differ from it; None where there is none, or nobody can tell."""
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    # Untracked files are not looked for: that walks through all runs and data that lie beside the code.
    status = _git(root, "status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def _git(root: Path, *command: str) -> str | None:
    """What git says, None where it is absent, fails, or takes too long."""
    try:
        # Without its optional locks it writes nothing, so that runs beside each other do not meet.
        told = ["git", "--no-optional-locks", "-C", str(root), *command]
        done = subprocess.run(told, capture_output=True, text=True, check=False, timeout=GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
