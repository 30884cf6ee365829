"""What survives a kill: one file a step, whole or absent.

A checkpoint is tensors and primitives only, written beside its place, synced and renamed; it is read with
`weights_only=True`, so that a file from elsewhere can run nothing.
"""

from __future__ import annotations

import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medcl3d.data.atomic import replacing
from medcl3d.errors import ConfigError, MachineError

SCHEMA = 1
KEEP = 2


@dataclass(frozen=True)
class TrainState:
    """All that a run needs to go on as if nothing had happened; `step` counts finished steps."""

    step: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    rng: Tensor


def save(folder: Path, state: TrainState) -> Path:
    """Write a checkpoint and remove all but the last two. MachineError when the disk is full; the old ones stay."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{state.step:08d}.pt"
    try:
        with replacing(path) as file:
            torch.save({"schema": SCHEMA, **vars(state)}, file)
    except RuntimeError as error:  # torch says so of a full disk in its own words
        raise MachineError(
            f"{path}: could not be written ({str(error).splitlines()[0]}); free some space, the same command resumes"
        ) from None
    for old in found(folder)[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def found(folder: Path) -> list[Path]:
    """Checkpoints in order of their steps."""
    return sorted(folder.glob("step_*.pt"))


def load_latest(folder: Path) -> TrainState | None:
    """The newest checkpoint that can be read; one that cannot is named in a warning. None where there is none."""
    for path in reversed(found(folder)):
        try:
            return load(path)
        except ConfigError as error:
            warnings.warn(f"{error}; going back to the one before", stacklevel=2)
    return None


def load(path: Path) -> TrainState:
    """Read one checkpoint. ConfigError where it is damaged, would run code, or is of a newer version."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ConfigError(
            f"{path}: holds more than tensors and numbers, or is damaged; it was not run. Use a checkpoint that medcl3d wrote"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ConfigError(f"{path}: not a whole checkpoint ({(str(error) or type(error).__name__).splitlines()[0]})") from None
    if not isinstance(content, dict) or "schema" not in content:
        raise ConfigError(f"{path}: not a checkpoint of medcl3d")
    if content["schema"] > SCHEMA:
        raise ConfigError(f"{path}: written by a newer medcl3d (schema {content['schema']}, this one reads up to {SCHEMA}); update medcl3d")
    return TrainState(content["step"], content["model"], content["optimizer"], content["rng"])
