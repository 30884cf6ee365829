"""The one place that imports TorchIO, and only when it is used."""

from __future__ import annotations

import numpy as np


def resample(
    voxels: np.ndarray, affine: np.ndarray, spacing_mm: tuple[float, float, float], *, label: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Resample ``[C, X, Y, Z]`` to a spacing: linear (smoothed first where voxels grow) for images, nearest for labels.

    Returns voxels of the same dtype and their affine ``[4, 4]``; world positions stay.
    """
    import torch
    import torchio

    make = torchio.LabelMap if label else torchio.ScalarImage
    image = make(tensor=torch.from_numpy(np.ascontiguousarray(voxels)), affine=affine)
    out = torchio.Resample(spacing_mm, image_interpolation="linear", label_interpolation="nearest", antialias=True)(image)
    return out.data.numpy().astype(voxels.dtype), np.asarray(out.affine, dtype=np.float64)
