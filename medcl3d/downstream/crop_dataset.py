"""Crop dataset: crops with targets, for training and for evaluation of trained or frozen networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from medcl3d.core.device import to_device
from medcl3d.core.geometry import Box, Triple, triple
from medcl3d.distributed.collectives import of_all_ranks, own_part
from medcl3d.distributed.precision import autocast
from medcl3d.distributed.seeding import Stream
from medcl3d.io.progress import track
from medcl3d.sampling.plan import Plan, RankSlice
from medcl3d.sampling.raw_batch import on_device, pinned
from medcl3d.store.store import Store
from medcl3d.views import ViewRecipe

BATCH_SIZE = 32
Target = int | float | tuple[float, ...]
"""A class index, a number, or findings (NaN if unknown)."""


@dataclass(frozen=True)
class Example:
    """One example to evaluate: boxes of a scan, whose outputs are averaged, and the target."""

    scan: int
    boxes: tuple[Box, ...]
    target: Target


@dataclass(frozen=True)
class CropBatch:
    """Crops with their targets and augmentation parameters.

    voxels      ``Float[N, C, D, H, W]``
    targets     ``Int64[N]`` class indices, ``Float32[N]`` numbers, or ``Float32[N, K]`` findings or NaN
    weights     ``Float``, shaped as the targets: their weights in the loss
    spacing_mm  ``Float64[N, 3]``
    parameters  parameters of the view recipe, stacked
    scans, boxes  the scan and box of each crop
    """

    voxels: Tensor
    targets: Tensor
    weights: Tensor
    spacing_mm: Tensor
    parameters: dict[str, Tensor]
    scans: tuple[int, ...]
    boxes: tuple[Box, ...]

    def to(self, device: torch.device) -> CropBatch:
        """The batch with crops, targets and weights on a device; the CPU decides how each is augmented."""
        return on_device(self, device, "voxels", "targets", "weights")

    def pin_memory(self) -> CropBatch:
        """The batch with crops in pinned memory, as the loader calls it."""
        return pinned(self, "voxels")

    def augmented(self, recipe: ViewRecipe) -> Tensor:
        """``Float[N, C, D, H, W]``: the augmented voxels, in full precision."""
        with torch.no_grad(), torch.autocast(self.voxels.device.type, enabled=False):
            voxels: Tensor = recipe.apply(self.voxels, self.parameters, self.spacing_mm).voxels
        return voxels


class DrawsCrops(Protocol):
    """Part of a task that the dataset uses: crops, their targets and weights."""

    def draw(
        self, store: Store, scan: int, patch_size: Triple, rng: np.random.Generator
    ) -> tuple[Box, Target]:
        """Draw a box of a training scan, with its target."""

    def weigh(self, store: Store, scans: np.ndarray, targets: Tensor) -> Tensor:
        """Weights in the loss, shaped as the targets, for training on these scans."""


@dataclass(frozen=True)
class CropDataset(Dataset[CropBatch]):
    """Dataset whose item `step` is this rank's contiguous slice of global batch `step`.

    An item depends only on (seed, step, sample).

    plan    its anchors are scans of the store, drawn equally often
    recipe  a view recipe
    """

    store: Store
    plan: Plan
    task: DrawsCrops
    patch_size: Triple
    recipe: ViewRecipe
    steps: int
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> CropBatch:
        samples = RankSlice(self.plan, self.rank, self.world_size)
        scans = [samples.anchor(step, i) for i in range(samples.size)]
        drawn = [
            self.task.draw(self.store, scan, self.patch_size, samples.generator(step, i, Stream.SAMPLE))
            for i, scan in enumerate(scans)
        ]
        boxes = [box for box, _ in drawn]
        targets = torch.tensor([target for _, target in drawn])
        return CropBatch(
            voxels=read_crops(self.store, list(zip(scans, boxes, strict=True))),
            targets=targets,
            weights=self.task.weigh(self.store, np.unique(self.plan.anchors), targets),
            spacing_mm=read_spacing_mm(self.store, scans),
            parameters=samples.parameters(step, self.recipe, self.patch_size),
            scans=tuple(scans),
            boxes=tuple(boxes),
        )


def read_crops(store: Store, crops: Sequence[tuple[int, Box]]) -> Tensor:
    """Read boxes of one size as ``Float32[N, C, D, H, W]``.

    Outside a scan, its own value of empty space is used.
    """
    return torch.stack([torch.from_numpy(store.read_crop(scan, box)) for scan, box in crops])


def read_spacing_mm(store: Store, scans: Sequence[int]) -> Tensor:
    """``Float64[N, 3]``: the voxel sizes of scans."""
    return torch.stack([torch.from_numpy(store.spacing_mm(scan)) for scan in scans])


def random_crop(store: Store, scan: int, patch_size: Triple, rng: np.random.Generator) -> Box:
    """A random box inside a scan.

    On axes on which the scan is smaller, a random box that contains the scan.
    """
    margin = store.collection.shapes[scan] - np.array(patch_size)
    return Box(triple(rng.integers(np.minimum(0, margin), np.maximum(0, margin) + 1)), patch_size)


def covering_crops(store: Store, scan: int, patch_size: Triple) -> tuple[Box, ...]:
    """The fewest boxes that cover a scan, evenly spaced; centred on axes on which the scan is smaller."""
    starts: list[list[int]] = []
    for length, size in zip(store.collection.shapes[scan], patch_size, strict=True):
        margin = int(length) - size
        starts.append(
            [margin // 2]
            if margin <= 0
            else [round(at) for at in np.linspace(0, margin, -(-int(length) // size))]
        )
    return tuple(Box((d, h, w), patch_size) for d, h, w in product(*starts))


def targets_of(examples: Sequence[Example]) -> np.ndarray:
    """``Int64[N]``, ``Float64[N]`` or ``Float64[N, K]``: the targets of examples."""
    return np.array([example.target for example in examples])


def whole_scans(store: Store, scans: Sequence[int], patch_size: Triple) -> list[Example]:
    """One example of class 0 per scan: the crops that cover it."""
    return [Example(int(scan), covering_crops(store, int(scan), patch_size), 0) for scan in scans]


@torch.no_grad()
def mean_outputs(
    output: Callable[[Tensor], Tensor],
    store: Store,
    examples: Sequence[Example],
    device: torch.device,
    dtype: torch.dtype | None,
    on_all_ranks: bool = False,
) -> np.ndarray:
    """``Float64[N, K]``: the outputs for the crops of each example, averaged over its boxes.

    output        ``[B, C, D, H, W]`` -> ``[B, K]``
    dtype         as in autocast, None for float32
    on_all_ranks  all ranks call this function, and each computes a part
    """
    crops = [(example.scan, box) for example in examples for box in example.boxes]
    chunks = [crops[start : start + BATCH_SIZE] for start in range(0, len(crops), BATCH_SIZE)]
    parts: list[Tensor] = []
    for chunk in track(own_part(chunks) if on_all_ranks else chunks, f"{len(crops)} crops"):
        with autocast(device, dtype):
            parts.append(output(to_device(read_crops(store, chunk), device)).double().cpu())
    if on_all_ranks:
        parts = of_all_ranks(parts)
    owner = torch.tensor([i for i, example in enumerate(examples) for _ in example.boxes])
    found = torch.cat(parts)
    total = torch.zeros(len(examples), found.shape[1], dtype=torch.float64).index_add_(0, owner, found)
    return (total / torch.bincount(owner, minlength=len(examples))[:, None]).numpy()
