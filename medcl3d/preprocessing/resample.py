"""Grids of scans: reorientation to RAS+ and resampling, with the size computed before memory is allocated."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
from nibabel.orientations import io_orientation

from medcl3d.core.errors import DataError
from medcl3d.preprocessing.grid import grid_at
from medcl3d.preprocessing.read_scan import Volume

LabelInterpolation = Literal["nearest", "linear"]
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
    voxels, affine = to_ras(volume)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing_mm is None or np.allclose(spacing, spacing_mm, rtol=1e-3):
        return voxels, affine
    from medcl3d.preprocessing.torchio_resample import resample

    return resample(voxels, affine, spacing_mm, label=nearest)


def to_ras(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Voxels ``[C, D, H, W]`` with axes closest to RAS+, and their affine; values do not change."""
    image = nibabel.Nifti1Image(np.moveaxis(volume.voxels, 0, -1), volume.affine)
    canonical = nibabel.as_closest_canonical(image)
    voxels = np.ascontiguousarray(np.moveaxis(np.asarray(canonical.dataobj), -1, 0))
    return voxels, np.asarray(canonical.affine, dtype=np.float64)


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
