"""Weights of a run folder: their place, their sidecar and their tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from torch import Tensor

from medcl3d.core.errors import ConfigError
from medcl3d.layouts.foreign import ForeignWeights
from medcl3d.training.run_folder import WEIGHTS_HASH, read_status

SCHEMA = 1
SCRATCH = "scratch"  # `init` without a pretraining
WEIGHTS = "encoder.safetensors"
RUN = f"use the run folder of a pretraining, its {WEIGHTS}"
Init = str | ForeignWeights
"""Where weights come from: scratch, a pretraining, or a file of another project."""


def after_step(init: Init, step: int | None) -> Init:
    """`init` with a step of its pretraining (RUN@STEP); scratch and foreign weights have no steps."""
    if step is None or init == SCRATCH or isinstance(init, ForeignWeights):
        return init
    return f"{init}@{step}"


def source_of(init: Init) -> Path | ForeignWeights:
    """What `load_weights` reads, for an `init` other than scratch."""
    return init if isinstance(init, ForeignWeights) else Path(init)


def weights_path(source: Path) -> Path:
    """The path of the weights in a run folder, after a step of it (``RUN@STEP``), or of a file.

    ConfigError if they do not exist.
    """
    folder, at, step = str(source).rpartition("@")
    if at and step.isdecimal() and not source.exists():
        return _after_step(source, Path(folder), int(step))
    path = source / WEIGHTS if source.is_dir() else source
    if path.is_file():
        return path
    if not source.is_dir():
        raise ConfigError("init", source, "file not found", f"{RUN}, or scratch")
    why = unfinished(source) or "not the run folder of a pretraining; use one"
    raise ConfigError("init", source, f"holds no {WEIGHTS}, {why}")


def unfinished(run: Path) -> str:
    """The state of a run that has not written its weights; "" if it is done, or the folder has no run."""
    status = read_status(run)
    state = status.get("state", "unknown")
    return f"its run is {state}; let it finish" if status and state != "done" else ""


def _after_step(source: Path, folder: Path, step: int) -> Path:
    """The weights of a run folder after a step that `train.keep_steps` names, or after the last one."""
    last = folder / WEIGHTS
    if last.is_file() and read_sidecar(last).get("step") == step:
        return last
    path = folder / f"encoder_{step}.safetensors"
    if path.is_file():
        return path
    known = sorted(int(file.stem.removeprefix("encoder_")) for file in folder.glob("encoder_*.safetensors"))
    steps = f"it has steps {', '.join(map(str, known))}" if known else "it has none of single steps"
    raise ConfigError(
        f"init = {source}: {folder} has no weights after step {step}, {steps}; pretrain with "
        f"train.keep_steps=[{step}], or use another step"
    )


def read_sidecar(path: Path, needed: Sequence[str] = ()) -> dict[str, Any]:
    """The metadata of weights, from the JSON file in the same folder.

    ConfigError if missing, damaged, of a newer version, or without one of the `needed` entries.
    """
    file = path.with_suffix(".json")
    problem, remedy = "", "copy it from the run folder again"
    try:
        content: dict[str, Any] = dict(json.loads(file.read_text(encoding="utf-8")))
        schema = int(content["schema"])
        lacking = [name for name in needed if name not in content]
        if lacking:
            problem = f"lacks {', '.join(lacking)}"
        if schema > SCHEMA:
            problem = f"written by a newer medcl3d (schema {schema}, this version reads up to {SCHEMA})"
            remedy = "update medcl3d"
    except FileNotFoundError:
        problem = "is missing, so the patients of pretraining are unknown"
        remedy = "copy it from the run folder"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"cannot be read ({error})"
    if problem:
        raise ConfigError(problem=problem, remedy=remedy, place=file)
    return content


def read_weights(path: Path, sidecar: Mapping[str, Any], remedy: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    ConfigError with `remedy` if the file is not complete, or not the one that its sidecar describes.
    """
    try:
        content = path.read_bytes()
        tensors = from_safetensors(content)
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(
            problem=f"not a complete safetensors file ({error})", remedy=remedy, place=path
        ) from None
    written = sidecar.get(WEIGHTS_HASH)  # absent in runs of version 0.1
    if written is not None and hashlib.sha256(content).hexdigest() != written:
        described = path.with_suffix(".json").name
        problem = f"damaged, or not the weights that {described} describes (SHA-256 differs)"
        raise ConfigError(problem=problem, remedy=remedy, place=path)
    return tensors
