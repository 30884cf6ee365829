"""Sizes of a first run, from the grids of the scans and the machine: spacing, patch, strides, steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from medcl3d.core.geometry import Triple, triple
from medcl3d.pretraining.patch_size import Strides, patch_and_strides

VARIES = 1.3  # 90th over 10th percentile of the spacing of an axis, from which scans are resampled
LARGE_GPU_BYTES = 10 << 30  # memory of the preset brain_mr, docs/concepts/choosing.md
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
    strides: Strides
    samples: int
    steps: int
    finetune_steps: int


def choose_sizes(grids: pd.DataFrame, machine: Machine) -> Sizes:
    """Sizes for scans.

    grids  shape and spacing along right, front and head (`ras_grids`), one row per scan

    A patch has about 32^3 voxels on a CPU, 64^3 or 96^3 on a GPU (`patch_and_strides`). A pretraining draws
    each scan 100 times on a CPU, 500 times on a GPU, within limits.
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
    patch, strides = patch_and_strides(shapes, median_mm[None], edge)
    samples = (12 if edge == 96 else 16) if machine.gpu_bytes else 16
    passes, least, most = (500, 5000, 50_000) if machine.gpu_bytes else (100, 300, 1000)
    steps = int(np.clip(-(-len(grids) * passes // samples // 100) * 100, least, most))
    return Sizes(
        spacing=spacing,
        patch_size=patch,
        patch_mm=triple(np.round(np.array(patch) * median_mm)),
        channels=channels,
        strides=strides,
        samples=samples,
        steps=steps,
        finetune_steps=2000 if machine.gpu_bytes else 200,
    )
