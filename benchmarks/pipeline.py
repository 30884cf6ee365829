"""Benchmark of crops that are read and augmented into batches, beside the loaders of other libraries."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Bench, Table, by, geometric, one_core, turns_of
from benchmarks.peers import batchgenerators_transform, monai_transforms
from benchmarks.views import CROPS_PER_VOLUME, one_thread_in_simpleitk, torchio_epochs, write_volumes
from medcl3d.config.field_types import Choice
from medcl3d.distributed.memory import keep_freed_memory
from medcl3d.pairs import PAIRS
from medcl3d.sampling.augment import make_views
from medcl3d.store.store import Store
from medcl3d.views import VIEWS

OURS, READING = "medcl3d", "medcl3d, crops without views"
BATCHGENERATORS = "batchgeneratorsv2, memory maps"
TITLE = "Crops and views beside other libraries"
COLUMNS = ("crop", "pipeline", "crops per second", "speed-up of medcl3d")


def pipeline(bench: Bench) -> Table:
    """Batches of augmented crops per second, from large volumes, for two sizes of crops."""
    keep_freed_memory()
    edge = bench.scale.large
    store = bench.prepared("large", num_patients=2, shape=[edge] * 3)
    paths = write_volumes(bench.folder, store)
    rows: list[tuple[str, ...]] = []
    for patch, per_batch in ((32, 32), (96, 8)):
        size = (min(patch, edge // 2),) * 3
        num_batches = max(1, bench.scale.crops // size[0] * 16 // per_batch)  # fewer large crops
        with one_core(), one_thread_in_simpleitk():
            works = _works(bench, store, paths, size, per_batch, num_batches)
            seconds = bench.turns(f"crops of {by(size)}", works)
        rows += _rows(seconds, size, num_batches * per_batch)
        if find_spec("batchgeneratorsv2") is None:
            reason = "not installed: pip install --no-deps batchgeneratorsv2"
            rows.append((by(size), BATCHGENERATORS, "-", reason))
    shapes = store.collection.shapes
    note = (
        f"Volumes of {by(shapes.min(axis=0))} to {by(shapes.max(axis=0))} voxels, in memory or cached by the "
        f"system; processor time of one core, {turns_of(bench.scale.repeats)}, in a process that keeps freed "
        "memory. Flip, affine, blur, low resolution, noise and gamma have the ranges and probabilities of "
        "the `mri` recipe; medcl3d also changes contrast and brightness and cuts boxes out. TorchIO: `Queue` "
        f"and `SubjectsLoader` ({CROPS_PER_VOLUME} crops per volume, uncompressed NIfTI). MONAI: "
        f"`CacheDataset` with all volumes in memory, `RandSpatialCropSamplesd` ({CROPS_PER_VOLUME} crops) "
        "and `DataLoader`. "
        "batchgeneratorsv2: crops of `.npy` memory maps, transformed one by one. All without workers. "
        "Crops without views are drawn, read and converted to float32 only."
    )
    return Table(TITLE, COLUMNS, tuple(rows), note)


def _rows(seconds: dict[str, np.ndarray], size: Sequence[int], crops: int) -> list[tuple[str, ...]]:
    return [
        (
            by(size),
            name,
            geometric(crops / one),
            "1" if name == OURS else geometric(one / seconds[OURS], ".2f"),
        )
        for name, one in seconds.items()
    ]


def _works(
    bench: Bench, store: Store, paths: Sequence[Path], size: tuple[int, int, int], per_batch: int, num: int
) -> dict[str, Callable[[], None]]:
    """Each pipeline as a function that makes `num` batches of `per_batch` crops."""
    strategy, recipe = PAIRS.build(Choice("augmented_views")), VIEWS.build(Choice("mri"))
    dataset = bench.dataset(strategy, recipe, per_batch // 2, store=store, patch=size)
    steps = iter(range(1 << 30))

    def ours() -> None:
        for _ in range(num):
            make_views(dataset[next(steps)], dataset.recipe)

    def reading() -> None:
        for _ in range(num):
            dataset[next(steps)]

    works = {
        OURS: ours,
        READING: reading,
        "TorchIO Queue": torchio_epochs(paths, num, size=size, per_batch=per_batch),
        "MONAI CacheDataset": monai_epochs(paths, num, size, per_batch),
    }
    if find_spec("batchgeneratorsv2") is not None:
        works[BATCHGENERATORS] = _batchgenerators(store, num, size, per_batch)
    return works


def monai_epochs(
    paths: Sequence[Path], num: int, size: tuple[int, int, int], per_batch: int
) -> Callable[[], None]:
    """`num` batches of a `DataLoader` over volumes in memory."""
    import monai.transforms as mt
    from monai.data import CacheDataset, DataLoader

    several = min(CROPS_PER_VOLUME, per_batch)
    volumes = num * per_batch // several
    transforms = mt.Compose(
        [
            mt.LoadImaged("image", image_only=True),
            mt.EnsureChannelFirstd("image"),
            mt.RandSpatialCropSamplesd("image", size, several, random_size=False),
            *monai_transforms("image"),
        ]
    )
    data = CacheDataset([{"image": str(path)} for path in paths], transforms, progress=False)

    def run() -> None:
        loader = DataLoader(
            torch.utils.data.Subset(data, [i % len(paths) for i in range(volumes)]),
            batch_size=per_batch // several,
        )
        read = sum(len(batch["image"]) for batch in loader)
        if read != num * per_batch:
            raise RuntimeError(
                f"MONAI returned {read} crops, but {num * per_batch} were measured for medcl3d"
            )

    return run


def _batchgenerators(
    store: Store, num: int, size: tuple[int, int, int], per_batch: int
) -> Callable[[], None]:
    """`num` batches of crops of memory maps, as nnU-Net's loader makes them."""
    transform, rng = batchgenerators_transform(size), np.random.default_rng(0)
    maps: list[Any] = []
    for scan in range(len(store)):
        path = store.root / f"plain_{scan}.npy"
        np.save(path, store.read_volume(scan))
        maps.append(np.load(path, mmap_mode="r"))

    def run() -> None:
        for _ in range(num):
            crops = []
            for _ in range(per_batch):
                volume = maps[int(rng.integers(len(maps)))]
                start = [int(rng.integers(n - m + 1)) for n, m in zip(volume.shape[1:], size, strict=True)]
                box = tuple(slice(a, a + m) for a, m in zip(start, size, strict=True))
                crop = torch.from_numpy(np.array(volume[(slice(None), *box)], dtype=np.float32))
                crops.append(transform(image=crop)["image"])
            batch = torch.stack(crops)
            if not math.isfinite(float(batch[0, 0, 0, 0, 0])):
                raise RuntimeError("batchgeneratorsv2 made a view that is not finite")

    return run
