"""Intensity transforms and MR artefacts of TorchIO."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torchio as tio


def intensity_transforms(transforms: Sequence[Mapping[str, Mapping[str, Any]]]) -> tio.Compose:
    """TorchIO's intensity transforms, ``[{name: fields}]``, one after the other. ValueError says which one is not right."""
    known: dict[str, Callable[..., tio.Transform]] = {
        name: thing
        for name, thing in vars(tio).items()
        if name.startswith("Random") and isinstance(thing, type) and issubclass(thing, tio.transforms.IntensityTransform)
    }
    made = []
    for entry in transforms:
        for name, fields in entry.items():
            if name not in known:
                kind = "moves voxels; use the recipe in `first` for that" if hasattr(tio, name) else "is unknown to TorchIO"
                raise ValueError(f"transform {name} {kind}; there are {', '.join(sorted(known))}")
            try:
                made.append(known[name](**{key: tuple(v) if isinstance(v, list) else v for key, v in (fields or {}).items()}))
            except (TypeError, ValueError) as error:
                raise ValueError(f"transform {name}: TorchIO says: {str(error).splitlines()[0]}") from None
    if not made:
        raise ValueError("a list with one transform or more is needed")
    return tio.Compose(made)


def apply_transforms(transform: tio.Transform, voxels: torch.Tensor, spacing_mm: np.ndarray, seed: int) -> torch.Tensor:
    """A transform of one view ``[C, D, H, W]``, with its draws from `seed` and nothing else's draws touched."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        image = tio.ScalarImage(tensor=voxels, affine=np.diag([*np.asarray(spacing_mm, dtype=np.float64), 1.0]))
        done: torch.Tensor = transform(image).data
    return done
