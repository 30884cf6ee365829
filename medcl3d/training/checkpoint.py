"""Training checkpoints: one file per saved step, written atomically.

A checkpoint holds only tensors and primitives. It is written to a temporary file, synced and renamed, and it
is read with `weights_only=True`, so that an untrusted file cannot run code.
"""

from __future__ import annotations

import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medcl3d.core.errors import ConfigError, MachineError
from medcl3d.io.atomic import open_atomic

SCHEMA = 1
KEEP = 2


@dataclass(frozen=True)
class TrainState:
    """The state that a run needs to resume bitwise; `step` counts finished steps."""

    step: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    rng: Tensor


def save(folder: Path, state: TrainState) -> Path:
    """Write a checkpoint and remove all but the last two.

    MachineError if the disk is full; older checkpoints stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{state.step:08d}.pt"
    try:
        with open_atomic(path) as file:
            torch.save({"schema": SCHEMA, **vars(state)}, file)
    except RuntimeError as error:  # torch raises this if the disk is full
        reason = str(error).splitlines()[0]
        raise MachineError(
            path, f"cannot be written ({reason})", "free disk space, then rerun the command to resume"
        ) from None
    for old in found(folder)[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def found(folder: Path) -> list[Path]:
    """Checkpoints, sorted by step."""
    return sorted(folder.glob("step_*.pt"))


def load_latest(folder: Path) -> TrainState | None:
    """The newest readable checkpoint, with a warning for each unreadable one; None if none exists."""
    for path in reversed(found(folder)):
        try:
            return load(path)
        except ConfigError as error:
            warnings.warn(f"{error}; using the previous checkpoint", stacklevel=2)
    return None


def load(path: Path) -> TrainState:
    """Read one checkpoint. ConfigError if it is damaged, would run code, or has a newer schema."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        problem = "damaged, or contains more than tensors and numbers"
        remedy = "no code was run. Use a checkpoint written by medcl3d"
        raise ConfigError(problem=problem, remedy=remedy, place=path) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(problem=f"incomplete checkpoint ({reason})", place=path) from None
    if not isinstance(content, dict) or "schema" not in content:
        raise ConfigError(problem="not a medcl3d checkpoint", place=path)
    schema = content.pop("schema")
    if schema > SCHEMA:
        problem = f"written by a newer medcl3d (schema {schema}, this version reads up to {SCHEMA})"
        raise ConfigError(problem=problem, remedy="update medcl3d", place=path)
    return TrainState(**content)
