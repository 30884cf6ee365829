"""Sizes of a first run, from the grids of the scans and the machine: spacing, patch, strides, steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from medcl3d.core.geometry import Triple, triple

VARIES = 1.3  # 90th over 10th percentile of the spacing of an axis, from which scans are resampled
MIN_MAP = 4  # voxels of the coarsest map along an axis that is halved, as in the packaged configurations
ANISOTROPIC = (
    2.0  # an axis is not halved while its voxels are so much longer than the finest (nnU-Net's rule)
)
LARGE_GPU_BYTES = 10 << 30  # memory of the preset brain_mr, docs/recipes.md
MOST_OF_A_SCAN = 0.6  # two larger crops of a scan hardly differ
SMALLER, THIN = 0.8, 16  # then at most this share of an axis, unless it is short
AXES = ("x", "y", "z")


@dataclass(frozen=True)
class Machine:
    """The device of a run; gpu_bytes is 0 without a GPU."""

    gpu_bytes: int
    name: str

    @staticmethod
    def here() -> Machine:
        """The machine of this process."""
        import torch

        from medcl3d.distributed.environment import device_name

        has_gpu = torch.cuda.is_available()
        num_bytes = torch.cuda.get_device_properties(0).total_memory if has_gpu else 0
        return Machine(num_bytes, device_name())


@dataclass(frozen=True)
class Sizes:
    """Sizes of a first run.

    spacing       what `prepare` does with the spacing: keep or median
    patch_size    voxels, along right, front and head
    patch_mm      the same in mm
    channels, strides  of the U-Net
    steps, samples     of a pretraining; finetune_steps of a fine-tuning
    """

    spacing: str
    patch_size: Triple
    patch_mm: Triple
    channels: tuple[int, ...]
    strides: tuple[int | Triple, ...]
    samples: int
    steps: int
    finetune_steps: int


def choose_sizes(grids: pd.DataFrame, machine: Machine) -> Sizes:
    """Sizes for scans.

    grids  shape and spacing along right, front and head (`ras_grids`), one row per scan

    A patch has about 32^3 voxels on a CPU, 64^3 or 96^3 on a GPU, the same mm along all axes, and no more
    voxels along an axis than half of the scans have; the others are padded. A pretraining draws each scan 100
    times on a CPU, 500 times on a GPU, within limits.
    """
    mm = grids[[f"{axis}_mm" for axis in AXES]].to_numpy(dtype=float)
    shapes = grids[list(AXES)].to_numpy(dtype=float)
    low, high = np.percentile(mm, (10, 90), axis=0)
    spacing = "median" if (high > VARIES * low).any() else "keep"
    median_mm = np.median(mm, axis=0)
    if spacing == "median":
        shapes = shapes * mm / median_mm
    edge = (96 if machine.gpu_bytes >= LARGE_GPU_BYTES else 64) if machine.gpu_bytes else 32
    channels = (16, 32, 64, 128) if machine.gpu_bytes else (8, 32, 64, 128)
    limit = np.median(shapes, axis=0)
    size = _extent(limit, median_mm, edge**3)
    if np.prod(size / limit) > MOST_OF_A_SCAN:
        size = _extent(np.where(limit < THIN, limit, SMALLER * limit), median_mm, edge**3)
    strides, total = _strides(size, median_mm, len(channels))
    patch = np.maximum(total, np.floor(size / total) * total).astype(int)
    samples = (12 if edge == 96 else 16) if machine.gpu_bytes else 16
    passes, least, most = (500, 5000, 50_000) if machine.gpu_bytes else (100, 300, 1000)
    steps = int(np.clip(-(-len(grids) * passes // samples // 100) * 100, least, most))
    return Sizes(
        spacing=spacing,
        patch_size=triple(patch),
        patch_mm=triple(np.round(patch * median_mm)),
        channels=channels,
        strides=strides,
        samples=samples,
        steps=steps,
        finetune_steps=2000 if machine.gpu_bytes else 200,
    )


def _extent(limit: np.ndarray, spacing_mm: np.ndarray, num_voxels: int) -> np.ndarray:
    """``Float64[3]`` voxels of a cube in mm with `num_voxels`, no longer than `limit` along any axis."""
    size, free = np.zeros(3), np.ones(3, dtype=bool)
    while free.any():
        left = num_voxels / np.prod(size[~free])
        edge_mm = (left * np.prod(spacing_mm[free])) ** (1 / free.sum())
        size[free] = edge_mm / spacing_mm[free]
        over = free & (size > limit)
        if not over.any():
            break
        size[over], free = limit[over], free & ~over
    return np.maximum(size, 1.0) + 1e-6


def _strides(
    size: np.ndarray, spacing_mm: np.ndarray, num_stages: int
) -> tuple[tuple[int | Triple, ...], np.ndarray]:
    """Strides of the stages, and their product per axis: short axes and long voxels are halved less often."""
    strides: list[int | Triple] = [1]
    total, voxel_mm = np.ones(3, dtype=int), spacing_mm.copy()
    for _ in range(num_stages - 1):
        fine = voxel_mm.min()
        halves = (size >= 2 * total * MIN_MAP) & (voxel_mm < ANISOTROPIC * fine)
        if not halves.any():
            halves = size >= 2 * total * MIN_MAP
        step = np.where(halves, 2, 1)
        strides.append(triple(step) if step.min() < step.max() else int(step[0]))
        total, voxel_mm = total * step, voxel_mm * step
    return tuple(strides), total
