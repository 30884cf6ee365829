"""Reorientation to RAS+ and resampling by TorchIO, with the size computed before memory is allocated."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
from nibabel.orientations import io_orientation

from medcl3d.core.errors import DataError
from medcl3d.preprocessing.read_scan import Volume

LabelInterpolation = Literal["nearest", "linear"]
FEWEST_TO_SMOOTH = 4  # voxels along an axis that ITK's recursive Gaussian needs
_COPIES = 4  # float32 copies of the voxels in memory at once: read, resampled, clipped, stacked


def refuse_too_large(
    path: Path, shape: Sequence[int], affine: np.ndarray, spacing_mm: tuple[float, float, float]
) -> None:
    """DataError if a scan ``[C, X, Y, Z]`` at a spacing (along RAS+) exceeds the memory of one process."""
    order = np.argsort(io_orientation(affine)[:, 0])
    size, _ = grid_at([shape[1 + axis] for axis in order], affine[:, [*order, 3]], spacing_mm)
    needed, available = _COPIES * 4 * shape[0] * size[0] * size[1] * size[2], memory_bytes()
    if needed > available:
        own_mm = " x ".join(f"{mm:.3g}" for mm in np.linalg.norm(affine[:3, :3], axis=0))
        much = f"{'x'.join(map(str, size))}, which take {needed / 1e9:.3g} GB of {available / 1e9:.3g} GB"
        problem = f"voxels of {own_mm} mm: at spacing_mm {list(spacing_mm)} there would be {much}"
        remedy = "correct the header, set assume_spacing_mm, or choose a coarser spacing_mm"
        raise DataError(path, problem, remedy)


def memory_bytes() -> int:
    """The most memory that one process can have: the machine's memory, or a lower limit if one is set."""
    limits = [
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        resource.getrlimit(resource.RLIMIT_AS)[0],
    ]
    with suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limit for limit in limits if limit not in (resource.RLIM_INFINITY, -1))


def respaced(volume: Volume, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """The affine with another voxel size along each axis of the file; directions do not change."""
    affine = volume.affine.copy()
    affine[:3, :3] *= np.array(spacing_mm) / volume.spacing_mm
    return affine


def resampled(
    volume: Volume, spacing_mm: tuple[float, float, float] | None, *, nearest: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Voxels ``[C, D, H, W]`` with axes closest to RAS+ at `spacing_mm` (None: its own), and their affine."""
    return at_spacing(*to_ras(volume), spacing_mm, nearest=nearest)


def at_spacing(
    voxels: np.ndarray,
    affine: np.ndarray,
    spacing_mm: tuple[float, float, float] | None,
    *,
    nearest: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The result of `to_ras` at `spacing_mm`; unchanged if that is None or its own."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing_mm is None or np.allclose(spacing, spacing_mm, rtol=1e-3):
        return voxels, affine
    return resample(voxels, affine, spacing_mm, label=nearest)


def to_ras(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Voxels ``[C, D, H, W]`` with axes closest to RAS+, and their affine; values do not change."""
    image = nibabel.Nifti1Image(np.moveaxis(volume.voxels, 0, -1), volume.affine)
    canonical = nibabel.as_closest_canonical(image)
    voxels = np.ascontiguousarray(np.moveaxis(np.asarray(canonical.dataobj), -1, 0))
    return voxels, np.asarray(canonical.affine, dtype=np.float64)


def resample(
    voxels: np.ndarray, affine: np.ndarray, spacing_mm: tuple[float, float, float], *, label: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Resample ``[C, X, Y, Z]``: linear (smoothed first if voxels grow) for images, nearest for labels.

    Returns voxels of the same dtype and their affine ``[4, 4]``; world positions stay.
    """
    import torch
    import torchio as tio

    grid = grid_at(voxels.shape[1:], affine, spacing_mm)
    dtype, thin = voxels.dtype, [0 if n >= FEWEST_TO_SMOOTH else FEWEST_TO_SMOOTH for n in voxels.shape[1:]]
    # Of spacings, TorchIO would make grids without a voxel.
    target: Any = grid if any(thin) or min(grid[0]) == 1 else spacing_mm
    if any(thin):  # the outermost planes are repeated, as the filter assumes, which needs a few planes
        voxels = np.pad(voxels, [(0, 0), *((n, n) for n in thin)], mode="edge")
        affine = nibabel.affines.from_matvec(affine[:3, :3], affine[:3, 3] - affine[:3, :3] @ np.array(thin))
    make = tio.LabelMap if label else tio.ScalarImage
    image = make(tensor=torch.from_numpy(np.ascontiguousarray(voxels)), affine=affine)
    how: dict[str, Any] = {"image_interpolation": "linear", "label_interpolation": "nearest"}
    out = tio.Resample(target, antialias=True, **how)(image)
    return out.data.numpy().astype(dtype), np.asarray(out.affine, dtype=np.float64)


def grid_at(
    shape: Sequence[int], affine: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine ``Float64[4, 4]`` of a grid with another spacing, the same centre and the same axes.

    It is the largest that fits into the old grid, as in TorchIO, so that nothing is extrapolated. A single
    plane remains one, and an axis shorter than a new voxel becomes one voxel.
    """
    old, new_mm = np.asarray(shape[:3]), np.asarray(spacing_mm, dtype=np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    size = np.where(old == 1, 1, np.clip(np.floor(old * spacing / new_mm), 1, 1e15))
    axes = affine[:3, :3] / spacing
    made = np.eye(4)
    made[:3, :3] = axes * new_mm
    made[:3, 3] = affine[:3, :3] @ ((old - 1) / 2) + affine[:3, 3] - axes @ ((size - 1) / 2 * new_mm)
    x, y, z = size.tolist()
    return (int(x), int(y), int(z)), made


def resampled_label(
    label: Volume, spacing_mm: tuple[float, float, float] | None, interpolation: LabelInterpolation
) -> np.ndarray:
    """``Int16[D, H, W]``: the class of the nearest voxel, or (linear) of the largest interpolated share."""
    if interpolation == "nearest" or spacing_mm is None:
        return resampled(label, spacing_mm, nearest=True)[0][0]

    def share(value: int) -> np.ndarray:
        mask = (label.voxels == value).astype(np.float32)
        return resampled(replace(label, voxels=mask), spacing_mm)[0][0]

    first, *others = np.unique(label.voxels)
    best = share(first)
    chosen = np.full(best.shape, first, dtype=np.int16)
    for value in others:  # one class at a time, since a hundred at once would not fit into memory
        found = share(value)
        chosen[found > best] = value
        best = np.maximum(best, found)
    return chosen
