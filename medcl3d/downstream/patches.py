"""Patches of labelled scans, some of them where the structures are."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import floor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from medcl3d.data.loader import Plan
from medcl3d.data.store import Store
from medcl3d.training.seeding import Stream, generator
from medcl3d.types import Box, Triple, triple

MAX_VOXELS_A_CLASS = 10_000  # of a scan that are kept to draw from, as nnU-Net does


@dataclass(frozen=True)
class PatchBatch:
    """Patches with their labels, and how they will be augmented.

    voxels      ``Float[N, C, D, H, W]``
    labels      ``Int16[N, D, H, W]`` class indices, 0 background
    spacing_mm  ``Float64[N, 3]``
    parameters  of the view recipe, stacked; empty where nothing is augmented
    scans, boxes, centred  where each patch comes from, and whether a foreground voxel was its centre
    """

    voxels: Tensor
    labels: Tensor
    spacing_mm: Tensor
    parameters: dict[str, Tensor]
    scans: tuple[int, ...]
    boxes: tuple[Box, ...]
    centred: tuple[bool, ...]

    def to(self, device: torch.device) -> PatchBatch:
        """The batch on a device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        parameters = {name: move(value) for name, value in self.parameters.items()}
        return PatchBatch(move(self.voxels), move(self.labels), move(self.spacing_mm), parameters, self.scans, self.boxes, self.centred)


def class_indices(labels: np.ndarray, classes: tuple[int, ...]) -> np.ndarray:
    """Label values as ``Int16`` indices: 1, 2, ... in the order of `classes` (sorted), 0 for any other value."""
    ordered = np.array(classes)
    position = np.searchsorted(ordered, labels).clip(max=len(ordered) - 1)
    return np.where(ordered[position] == labels, position + 1, 0).astype(np.int16)


@dataclass(frozen=True)
class PatchDataset(Dataset[PatchBatch]):
    """Item `step` is this rank's contiguous slice of global batch `step`: a function of (seed, step, sample) alone.

    Each scan comes equally often. Of the run's patches, `foreground_fraction` are centred on a voxel of a class
    drawn uniformly among those of the scan (moved so that the patch stays inside the scan); the rest lie
    anywhere in it. What a scan lacks to a patch is filled with its own value of empty space and with background.
    Source: Isensee et al. 2021, nnU-Net (foreground oversampling).

    plan     its anchors are scans of the store
    classes  label values, sorted, background left out
    recipe   a view recipe, None for no augmentation
    """

    store: Store
    plan: Plan
    classes: tuple[int, ...]
    patch_size: Triple
    foreground_fraction: float
    recipe: Any
    steps: int
    rank: int = 0
    world_size: int = 1
    _foreground: dict[int, list[np.ndarray]] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> PatchBatch:
        per_rank = self.plan.samples_per_step // self.world_size
        epoch, scans = self.plan.samples(step)
        first = self.rank * per_rank
        rows = range(first, first + per_rank)
        drawn = [self._draw(step, epoch, i, int(scans[i])) for i in rows]
        parameters = [parameters for _, _, parameters in drawn]
        chosen = [(int(scans[i]), box) for i, (box, _, _) in zip(rows, drawn, strict=True)]
        return PatchBatch(
            voxels=torch.stack([torch.from_numpy(self.store.read_crop(scan, box)) for scan, box in chosen]),
            labels=torch.stack([torch.from_numpy(class_indices(self.store.read_label(scan, box), self.classes)) for scan, box in chosen]),
            spacing_mm=torch.stack([torch.from_numpy(self.store.spacing_mm(scan)) for scan, _ in chosen]),
            parameters={key: torch.stack([torch.as_tensor(one[key]) for one in parameters]) for key in parameters[0]},
            scans=tuple(scan for scan, _ in chosen),
            boxes=tuple(box for _, box in chosen),
            centred=tuple(centred for _, centred, _ in drawn),
        )

    def _draw(self, step: int, epoch: int, index: int, scan: int) -> tuple[Box, bool, dict[str, np.ndarray]]:
        """Where a patch lies, whether it is centred on foreground, and its augmentation."""
        number = step * self.plan.samples_per_step + index
        name = step % self.plan.steps_per_epoch * self.plan.samples_per_step + index
        rng = generator(self.plan.seed, epoch, name, Stream.SAMPLE)
        # Every run of 1 / fraction patches holds one: the fraction is met in each batch, not on average only.
        wanted = floor((number + 1) * self.foreground_fraction) > floor(number * self.foreground_fraction)
        shape, size = self.store.collection.shapes[scan], np.array(self.patch_size)
        low, high = np.minimum(0, shape - size), np.maximum(0, shape - size)
        start = rng.integers(low, high + 1)
        present = self._voxels_of(scan) if wanted else []
        if present:
            voxels = present[rng.integers(len(present))]
            centre = np.array(np.unravel_index(voxels[rng.integers(len(voxels))], shape))
            start = np.clip(centre - size // 2, low, high)
        parameters = self.recipe.draw(generator(self.plan.seed, epoch, name, Stream.VIEW), self.patch_size) if self.recipe else {}
        return Box(triple(start), self.patch_size), bool(present), parameters

    def _voxels_of(self, scan: int) -> list[np.ndarray]:
        """Flat voxel indices of each class that the scan holds, evenly thinned; read once a process."""
        if scan not in self._foreground:
            indices = class_indices(self.store.read_label(scan), self.classes).ravel()
            voxels = [np.flatnonzero(indices == k) for k in range(1, len(self.classes) + 1)]
            self._foreground[scan] = [v[:: -(-len(v) // MAX_VOXELS_A_CLASS)] for v in voxels if len(v)]
        return self._foreground[scan]
