"""Training checkpoints: one file per saved step, written atomically, with a checksum.

A checkpoint holds only tensors and primitives. It is written to a temporary file, synced and renamed, and it
is read with `weights_only=True`, so that an untrusted file cannot run code.
"""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import warnings
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medcl3d.core.errors import ConfigError, MachineError
from medcl3d.distributed.memory import memory_errors
from medcl3d.io.atomic import open_atomic
from medcl3d.io.disk_space import format_size, free_bytes
from medcl3d.io.shared_memory import num_bytes

SCHEMA = 3
"""1: without a checksum. 2: without the optional parts, which are written only if there are any."""
KEEP = 2
CHUNK = 2**24
DAMAGED = ".damaged"


class DamagedCheckpoint(ConfigError):
    """A checkpoint that cannot be read as it was written."""


@dataclass(frozen=True)
class TrainState:
    """The state that a run needs to resume bitwise; `step` counts finished steps.

    device_rng  random state of the GPU; scaler: the scale of the loss in float16
    """

    step: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    rng: Tensor
    device_rng: Tensor | None = None
    scaler: dict[str, Any] | None = None

    def content(self) -> dict[str, Any]:
        """The parts that exist."""
        return {name: value for name, value in vars(self).items() if value is not None}


def save(folder: Path, state: TrainState) -> Path:
    """Write a checkpoint and remove all but the last two.

    MachineError if the disk is full, in which case older checkpoints stay, or if the run folder was deleted.
    """
    path = folder / f"step_{state.step:08d}.pt"
    if not folder.parent.exists():
        raise MachineError(
            folder.parent, "this folder was deleted during the run", "the same command starts again"
        )
    try:
        folder.mkdir(exist_ok=True)
        with open_atomic(path) as file:
            content = state.content()
            schema = SCHEMA if len(content) > len(_required()) else SCHEMA - 1
            torch.save({"schema": schema, **content, "sha256": checksum(content)}, file)
    except (OSError, RuntimeError, MachineError) as error:  # torch raises RuntimeError if the disk is full
        cause = error.__cause__ or error
        reason = str(getattr(cause, "strerror", None) or cause).splitlines()[0]
        needed, free = num_bytes(vars(state)), free_bytes(folder)
        if free < needed:  # torch may name a position in the file instead
            reason = os.strerror(errno.ENOSPC)
        sizes = f"{format_size(needed)} needed, {format_size(free)} free"
        raise MachineError(
            path,
            f"cannot be written ({reason}; {sizes})",
            "free disk space, then rerun the command to resume",
        ) from None
    for old in found(folder)[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def _required() -> list[str]:
    """The parts of every checkpoint."""
    return [field.name for field in fields(TrainState) if field.default is MISSING]


def found(folder: Path) -> list[Path]:
    """Checkpoints, sorted by step."""
    return sorted(folder.glob("step_*.pt"))


def load_latest(folder: Path) -> TrainState | None:
    """The newest readable checkpoint; None if none exists.

    A damaged one is renamed to NAME.damaged, with a warning, so that it does not count as one of the two that
    are kept. ConfigError if one was written by a newer version.
    """
    for path in reversed(found(folder)):
        try:
            return load(path)
        except DamagedCheckpoint as error:
            with suppress(OSError):
                path.rename(path.with_name(path.name + DAMAGED))
            warnings.warn(f"{error}; using the previous checkpoint", stacklevel=2)
    return None


def load(path: Path) -> TrainState:
    """Read one checkpoint.

    DamagedCheckpoint if it is incomplete, differs from its checksum, or would run code. ConfigError if it has
    a newer schema. MachineError if the disk or the memory fails: the checkpoint may be valid.
    """
    _require_readable(path)
    try:
        with memory_errors("use a machine with more memory; the same command resumes"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        problem = "damaged, or contains more than tensors and numbers"
        remedy = "no code was run. Use a checkpoint written by medcl3d"
        raise DamagedCheckpoint(problem=problem, remedy=remedy, place=path) from None
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DamagedCheckpoint(problem=f"incomplete checkpoint ({reason})", place=path) from None
    if not isinstance(content, dict) or not isinstance(content.get("schema"), int):
        raise DamagedCheckpoint(problem="not a medcl3d checkpoint", place=path)
    schema = content.pop("schema")
    if schema > SCHEMA:
        problem = f"written by a newer medcl3d (schema {schema}, this version reads up to {SCHEMA})"
        raise ConfigError(problem=problem, remedy="update medcl3d", place=path)
    written = content.pop("sha256", None)
    missing = [name for name in _required() if name not in content]
    if missing:
        raise DamagedCheckpoint(problem=f"incomplete checkpoint (no {', '.join(missing)})", place=path)
    if written is None and schema > 1:
        raise DamagedCheckpoint(problem="incomplete checkpoint (no checksum)", place=path)
    if written is not None and written != checksum(content):
        raise DamagedCheckpoint(problem="damaged: its content differs from its checksum", place=path)
    return TrainState(**content)


def _require_readable(path: Path) -> None:
    """MachineError if the bytes cannot be read: torch reports a disk that fails like a damaged file."""
    try:
        with path.open("rb") as file:
            while file.read(CHUNK):
                pass
    except OSError as error:
        reason = f"cannot be read ({error.strerror or error})"
        raise MachineError(path, reason, "it is kept; the same command resumes once it can be read") from None


def checksum(content: Any) -> str:
    """SHA-256 of nested dictionaries, sequences, tensors and primitives, in their order."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            digest.update(f"tensor {value.dtype} {tuple(value.shape)}".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
        elif isinstance(value, dict):
            digest.update(f"dict {len(value)}".encode())
            for key, item in value.items():
                digest.update(repr(key).encode())
                add(item)
        elif isinstance(value, list | tuple):
            digest.update(f"sequence {len(value)}".encode())
            for item in value:
                add(item)
        else:
            digest.update(repr(value).encode())

    add(content)
    return digest.hexdigest()
