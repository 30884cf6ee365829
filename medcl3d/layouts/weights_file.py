"""Reading of published weights: .pt, .pth and .ckpt of PyTorch without running code, and .safetensors."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from torch import Tensor

from medcl3d.core.errors import ConfigError
from medcl3d.layouts.layout import WeightsFile

CONTAINERS = ("network_weights", "state_dict", "model_state_dict", "model", "model_state", "weights")
"""Entries of checkpoints that hold the tensors, in nnU-Net, Lightning, MONAI and other trainers."""
WRAPPERS = ("module.", "_orig_mod.")  # prefixes of DistributedDataParallel and torch.compile
# What checkpoints of nnU-Net and Lightning hold beside tensors: numbers and arrays of NumPy, no code.
SAFE: list[Any] = [np.ndarray, np.dtype]
SAFE += [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
for _made_by, _name in (
    (np.float64(0).__reduce__()[0], "scalar"),
    (np.zeros(1).__reduce__()[0], "_reconstruct"),
):
    # Files name the module of the NumPy that wrote them: version 1 or 2.
    SAFE += [(_made_by, f"numpy.{core}.multiarray.{_name}") for core in ("core", "_core")]


def read_weights_file(content: bytes, path: Path) -> WeightsFile:
    """The tensors of a file and its other entries.

    ConfigError: it is neither format, damaged, holds objects that only running code can make, or no tensors.
    """
    if path.suffix == ".safetensors":
        try:
            return WeightsFile(unwrapped(from_safetensors(content)), {})
        except (SafetensorError, ValueError) as error:
            raise _unreadable(path, f"not a complete safetensors file ({error})") from None
    found = _from_torch(content, path)
    tensors, others = found, {}
    for name in CONTAINERS:
        inside = found.get(name)
        if isinstance(inside, Mapping) and any(isinstance(one, Tensor) for one in inside.values()):
            tensors, others = inside, {key: one for key, one in found.items() if key != name}
            break
    named = {str(name): one for name, one in tensors.items() if isinstance(one, Tensor)}
    if not named:
        entries = ", ".join(map(str, list(found)[:5]))
        raise _unreadable(path, f"holds no tensors, but {entries or 'nothing'}")
    return WeightsFile(unwrapped(named), others)


def _from_torch(content: bytes, path: Path) -> Mapping[str, Any]:
    try:
        with torch.serialization.safe_globals(SAFE):
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next(
            (line for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), ""
        )
        problem = f"needs objects that only running its code can make ({reason.strip() or 'a whole pickle'})"
        remedy = "save its state_dict alone: torch.save(network.state_dict(), FILE)"
        raise ConfigError(problem=problem, remedy=remedy, place=path) from None
    except (RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        reason = next(iter(str(error).splitlines()), "it is empty")
        raise _unreadable(path, f"not a file of PyTorch, or damaged ({reason})") from None
    if not isinstance(found, Mapping):
        raise _unreadable(path, f"holds a {type(found).__name__}, not tensors by name")
    return found


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, by names without the prefixes that wrappers add in front or inside."""
    return {_unwrapped(name): tensor for name, tensor in tensors.items()}


def _unwrapped(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper).replace(f".{wrapper}", ".")
    return _unwrapped(name) if name.startswith(WRAPPERS) else name


def _unreadable(path: Path, problem: str) -> ConfigError:
    return ConfigError(problem=problem, remedy="download it again", place=path)
