"""Patch dataset: patches of labelled scans, with foreground oversampling."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import floor

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from medcl3d.core.geometry import Box, Triple, triple
from medcl3d.distributed.seeding import Stream
from medcl3d.downstream.crop_dataset import random_crop, read_crops, read_spacing_mm
from medcl3d.sampling.plan import Plan, RankSlice
from medcl3d.sampling.raw_batch import on_device, pinned
from medcl3d.store.store import Store
from medcl3d.views import ViewRecipe

MAX_VOXELS_PER_CLASS = 10_000  # voxels per scan to draw from, as in nnU-Net


@dataclass(frozen=True)
class PatchBatch:
    """Patches with their labels and augmentation parameters.

    voxels      ``Float[N, C, D, H, W]``
    labels      ``Int16[N, D, H, W]`` class indices, 0 background
    spacing_mm  ``Float64[N, 3]``
    parameters  parameters of the view recipe, stacked; empty without augmentation
    scans, boxes, centred  scan and box of each patch, and whether it is centred on a foreground voxel
    """

    voxels: Tensor
    labels: Tensor
    spacing_mm: Tensor
    parameters: dict[str, Tensor]
    scans: tuple[int, ...]
    boxes: tuple[Box, ...]
    centred: tuple[bool, ...]

    def to(self, device: torch.device) -> PatchBatch:
        """The batch with patches and labels on a device; the CPU decides how each is augmented."""
        return on_device(self, device, "voxels", "labels")

    def pin_memory(self) -> PatchBatch:
        """The batch with patches and labels in pinned memory, as the loader calls it."""
        return pinned(self, "voxels", "labels")


def class_indices(labels: np.ndarray, classes: tuple[int, ...]) -> np.ndarray:
    """Class indices ``Int16`` of label values: 1, 2, ... in the order of `classes` (sorted), 0 for others."""
    ordered = np.array(classes)
    position = np.searchsorted(ordered, labels).clip(max=len(ordered) - 1)
    return np.where(ordered[position] == labels, position + 1, 0).astype(np.int16)


@dataclass(frozen=True)
class PatchDataset(Dataset[PatchBatch]):
    """Dataset whose item `step` is this rank's contiguous slice of global batch `step`.

    An item depends only on (seed, step, sample). Scans are drawn equally often. A fraction
    `foreground_fraction` of the patches is centred on a voxel of a class drawn uniformly among those of the
    scan (moved if needed to stay inside the scan); the others are at random positions. Outside a scan, its
    own value of empty space and background are used. Source: Isensee et al. 2021, nnU-Net.

    plan     its anchors are scans of the store
    classes  label values, sorted, without background
    recipe   a view recipe, None for no augmentation
    """

    store: Store
    plan: Plan
    classes: tuple[int, ...]
    patch_size: Triple
    foreground_fraction: float
    recipe: ViewRecipe | None
    steps: int
    rank: int = 0
    world_size: int = 1
    _foreground: dict[int, list[np.ndarray]] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> PatchBatch:
        samples = RankSlice(self.plan, self.rank, self.world_size)
        scans = [samples.anchor(step, i) for i in range(samples.size)]
        drawn = [
            self._draw(scan, samples.number(step, i), samples.generator(step, i, Stream.SAMPLE))
            for i, scan in enumerate(scans)
        ]
        boxes = [box for box, _ in drawn]
        chosen = list(zip(scans, boxes, strict=True))
        labels = [class_indices(self.store.read_label(scan, box), self.classes) for scan, box in chosen]
        return PatchBatch(
            voxels=read_crops(self.store, chosen),
            labels=torch.stack([torch.from_numpy(one) for one in labels]),
            spacing_mm=read_spacing_mm(self.store, scans),
            parameters=samples.parameters(step, self.recipe, self.patch_size) if self.recipe else {},
            scans=tuple(scans),
            boxes=tuple(boxes),
            centred=tuple(centred for _, centred in drawn),
        )

    def _draw(self, scan: int, number: int, rng: np.random.Generator) -> tuple[Box, bool]:
        """Draw the box of patch `number` of the run, and whether it is centred on foreground."""
        # One of every 1 / fraction consecutive patches is centred: the fraction holds in each batch, not only
        # on average.
        wanted = floor((number + 1) * self.foreground_fraction) > floor(number * self.foreground_fraction)
        box = random_crop(self.store, scan, self.patch_size, rng)
        present = self._voxels_of(scan) if wanted else []
        if not present:
            return box, False
        shape, size = self.store.collection.shapes[scan], np.array(self.patch_size)
        voxels = present[rng.integers(len(present))]
        centre = np.array(np.unravel_index(voxels[rng.integers(len(voxels))], shape))
        start = np.clip(centre - size // 2, np.minimum(0, shape - size), np.maximum(0, shape - size))
        return Box(triple(start), self.patch_size), True

    def _voxels_of(self, scan: int) -> list[np.ndarray]:
        """Flat voxel indices of each class in the scan, subsampled evenly; read once per process."""
        if scan not in self._foreground:
            indices = class_indices(self.store.read_label(scan), self.classes).ravel()
            voxels = [np.flatnonzero(indices == k) for k in range(1, len(self.classes) + 1)]
            self._foreground[scan] = [v[:: -(-len(v) // MAX_VOXELS_PER_CLASS)] for v in voxels if len(v)]
        return self._foreground[scan]
