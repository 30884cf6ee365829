"""Intensity transforms and MR artefacts of TorchIO."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torchio as tio

NOT_OF_INTENSITY = ("RandomSwap", "RandomLabelsToImage")
"""TorchIO counts them as transforms of intensity: one exchanges patches, the other replaces the image."""


def intensity_transforms(transforms: Sequence[Mapping[str, Mapping[str, Any]]]) -> tio.Compose:
    """TorchIO's intensity transforms, ``[{name: fields}]``, one after the other. ValueError names the first
    invalid one.
    """
    base = tio.transforms.IntensityTransform
    classes = {name: value for name, value in vars(tio).items() if isinstance(value, type)}
    known: dict[str, Callable[..., tio.Transform]] = {
        name: of
        for name, of in classes.items()
        if name.startswith("Random") and issubclass(of, base) and name not in NOT_OF_INTENSITY
    }
    made = []
    for name, fields in (item for entry in transforms for item in entry.items()):
        if name not in known:
            moves = "moves voxels; use the recipe in `first` for that"
            kind = moves if hasattr(tio, name) else "is unknown to TorchIO"
            raise ValueError(f"transform {name} {kind}; there are {', '.join(sorted(known))}")
        given = {key: tuple(v) if isinstance(v, list) else v for key, v in (fields or {}).items()}
        try:
            made.append(known[name](**given))
        except (TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"transform {name}: error of TorchIO: {reason}") from None
    if not made:
        raise ValueError("at least one transform is required")
    return tio.Compose(made)


def apply_transforms(
    transform: tio.Transform, voxels: torch.Tensor, spacing_mm: np.ndarray, seed: int
) -> torch.Tensor:
    """A transform of one view ``[C, D, H, W]``, with its draws from `seed`; no other random state changes."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        affine = np.diag([*np.asarray(spacing_mm, dtype=np.float64), 1.0])
        image = tio.ScalarImage(tensor=voxels, affine=affine)
        done: torch.Tensor = transform(image).data
    return done
