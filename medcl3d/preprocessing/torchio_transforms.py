"""Intensity transforms and MR artefacts of TorchIO."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torchio as tio


def intensity_transforms(transforms: Sequence[Mapping[str, Mapping[str, Any]]]) -> tio.Compose:
    """TorchIO's intensity transforms, ``[{name: fields}]``, one after the other. ValueError names the first
    invalid one.
    """
    known: dict[str, Callable[..., tio.Transform]] = {
        name: value
        for name, value in vars(tio).items()
        if name.startswith("Random")
        and isinstance(value, type)
        and issubclass(value, tio.transforms.IntensityTransform)
    }
    made = []
    for entry in transforms:
        for name, fields in entry.items():
            if name not in known:
                kind = (
                    "moves voxels; use the recipe in `first` for that"
                    if hasattr(tio, name)
                    else "is unknown to TorchIO"
                )
                raise ValueError(f"transform {name} {kind}; there are {', '.join(sorted(known))}")
            try:
                made.append(
                    known[name](
                        **{key: tuple(v) if isinstance(v, list) else v for key, v in (fields or {}).items()}
                    )
                )
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"transform {name}: error of TorchIO: {str(error).splitlines()[0]}"
                ) from None
    if not made:
        raise ValueError("at least one transform is required")
    return tio.Compose(made)


def apply_transforms(
    transform: tio.Transform, voxels: torch.Tensor, spacing_mm: np.ndarray, seed: int
) -> torch.Tensor:
    """A transform of one view ``[C, D, H, W]``, with its draws from `seed`; no other random state changes."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        image = tio.ScalarImage(
            tensor=voxels, affine=np.diag([*np.asarray(spacing_mm, dtype=np.float64), 1.0])
        )
        done: torch.Tensor = transform(image).data
    return done
