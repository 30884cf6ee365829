"""Benchmark of crops that are read and augmented into batches, beside the loaders of other libraries."""

from __future__ import annotations

import ctypes
import gc
import math
import mmap
import os
import pickle
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Bench, Table, by, compared, one_core, turns_of
from benchmarks.peers import batchgenerators_transform, monai_transforms
from benchmarks.views import CROPS_PER_VOLUME, one_thread_in_simpleitk, torchio_epochs, write_volumes
from medcl3d.config.field_types import Choice
from medcl3d.distributed.memory import keep_freed_memory
from medcl3d.pairs import PAIRS
from medcl3d.sampling.augment import make_views
from medcl3d.store.store import Store
from medcl3d.views import VIEWS

OURS, READING = "medcl3d", "medcl3d, crops without views"
RESAMPLING = "medcl3d, geometry of views alone"
BATCHGENERATORS = "batchgeneratorsv2, memory maps"
TITLE = "Crops and views beside other libraries"
UNCACHED = "Crops and views beside other libraries, from files that are not cached"
VOLUMES = (".npy", ".nii", ".pt")  # suffixes of the files that hold voxels
MOST_CACHED = 0.05  # fraction of a file that may stay in memory
COLUMNS = ("crop", "pipeline", "crops per second", "speed-up of medcl3d")


def pipeline(bench: Bench) -> list[Table]:
    """Batches of augmented crops per second, from large volumes, for two sizes of crops.

    Once with all volumes in memory or cached by the system, once after the system dropped the files.
    """
    keep_freed_memory()
    edge = bench.scale.large
    store = bench.prepared("large", num_patients=2, shape=[edge] * 3)
    paths = write_volumes(bench.folder, copy(store))  # a copy, like `unopened`, has its own memory maps
    return [_warm(bench, store, paths), _cold(bench, store, paths)]


def _warm(bench: Bench, store: Store, paths: Sequence[Path]) -> Table:
    edge = bench.scale.large
    rows: list[tuple[str, ...]] = []
    for patch, per_batch in ((32, 32), (96, 8)):
        size = (min(patch, edge // 2),) * 3
        num_batches = max(1, bench.scale.crops // size[0] * 16 // per_batch)  # fewer large crops
        with one_core(), one_thread_in_simpleitk():
            works = _works(bench, store, paths, size, per_batch, num_batches)
            seconds = bench.turns(f"crops of {by(size)}", works)
        rows += _rows(seconds, size, num_batches * per_batch)
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
        "Crops without views are drawn, read and converted to float32 only; the geometry of views is their "
        "flip and affine map, without changes of intensities."
    )
    return Table(TITLE, COLUMNS, tuple(rows), note)


def _cold(bench: Bench, store: Store, paths: Sequence[Path]) -> Table:
    """Wall time of one batch per volume, each turn after the system dropped all files of voxels."""
    edge = bench.scale.large
    try:
        drop_from_cache(paths)
    except (RuntimeError, AttributeError) as error:  # AttributeError: not Linux
        return Table(
            UNCACHED, COLUMNS, (("-", OURS, "-", f"not measured: {error}"),), "Nothing was measured."
        )

    def timed(work: Callable[[], Any]) -> float:
        drop_from_cache([path for path in bench.folder.rglob("*") if path.suffix in VOLUMES])
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    rows: list[tuple[str, ...]] = []
    for patch in (32, 96):
        size = (min(patch, edge // 2),) * 3
        with one_core(), one_thread_in_simpleitk():
            works = _works(
                bench, store, paths, size, CROPS_PER_VOLUME, len(paths), keep=bench.folder / "kept"
            )
            seconds = bench.turns(f"crops of {by(size)}, not cached", works, timed)
        rows += _rows(seconds, size, len(paths) * CROPS_PER_VOLUME)
    note = (
        f"As with cached files, but wall time, {CROPS_PER_VOLUME} crops per volume, and all files of voxels "
        "are dropped from the cache of the system before each turn (`posix_fadvise`); MONAI: "
        f"`PersistentDataset`, which reads each volume from a file. {len(paths)} volumes on the "
        "disk of this machine."
    )
    return Table(UNCACHED, COLUMNS, tuple(rows), note)


def drop_from_cache(paths: Sequence[Path]) -> None:
    """Make the system forget the contents of files, so that they are read from the disk again.

    RuntimeError: a file is still in memory, as on a file system in memory or while a process has it mapped.
    """
    gc.collect()  # memory maps keep files in memory
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(handle)  # unwritten pages stay in memory
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
        if (kept := cached_pages(path)) > MOST_CACHED:
            raise RuntimeError(
                f"{path}: {100 * kept:.0f}% still in memory after posix_fadvise; use a folder on a disk"
            )


def cached_pages(path: Path) -> float:
    """The fraction of a file's pages that the system has in memory."""
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    pages = np.zeros(-(-mapped.size // mmap.PAGESIZE), dtype=np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    address, vector = ctypes.c_void_p(mapped.ctypes.data), ctypes.c_void_p(pages.ctypes.data)
    if libc.mincore(address, ctypes.c_size_t(mapped.size), vector):
        raise OSError(ctypes.get_errno(), "mincore", str(path))
    return float((pages & 1).mean())


def _rows(seconds: dict[str, np.ndarray], size: Sequence[int], crops: int) -> list[tuple[str, ...]]:
    rates = {name: crops / one for name, one in seconds.items()}
    rows = compared(rates, OURS, first=[by(size)], inverse=True)
    if find_spec("batchgeneratorsv2") is None:
        reason = "not installed: pip install --no-deps batchgeneratorsv2"
        rows.append((by(size), BATCHGENERATORS, "-", reason))
    return rows


def _works(
    bench: Bench,
    store: Store,
    paths: Sequence[Path],
    size: tuple[int, int, int],
    per_batch: int,
    num: int,
    keep: Path | None = None,
) -> dict[str, Callable[[], None]]:
    """Each pipeline as a function that makes `num` batches of `per_batch` crops.

    Each call opens its files again. keep: a folder for the volumes of MONAI, instead of memory.
    """
    strategy, recipe = PAIRS.build(Choice("augmented_views")), VIEWS.build(Choice("mri"))
    dataset = bench.dataset(strategy, recipe, per_batch // 2, store=store, patch=size)
    unopened = pickle.dumps(dataset)  # as a worker receives it
    steps = iter(range(1 << 30))

    def ours() -> None:
        opened = pickle.loads(unopened)
        for _ in range(num):
            make_views(opened[next(steps)], opened.recipe)

    def reading() -> None:
        opened = pickle.loads(unopened)
        for _ in range(num):
            opened[next(steps)]

    def resampling() -> None:
        opened = pickle.loads(unopened)
        recipe = replace(opened.recipe, intensity=None)
        for _ in range(num):
            make_views(opened[next(steps)], recipe)

    works = {
        OURS: ours,
        READING: reading,
        RESAMPLING: resampling,
        "TorchIO Queue": torchio_epochs(paths, num, size=size, per_batch=per_batch),
        f"MONAI {'CacheDataset' if keep is None else 'PersistentDataset'}": monai_epochs(
            paths, num, size, per_batch, keep
        ),
    }
    if find_spec("batchgeneratorsv2") is not None:
        works[BATCHGENERATORS] = _batchgenerators(store, num, size, per_batch)
    return works


def monai_epochs(
    paths: Sequence[Path], num: int, size: tuple[int, int, int], per_batch: int, keep: Path | None = None
) -> Callable[[], None]:
    """`num` batches of a `DataLoader` over volumes in memory, or in files in the folder `keep`."""
    import monai.transforms as mt
    from monai.data import CacheDataset, DataLoader, PersistentDataset

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
    items = [{"image": str(path)} for path in paths]
    data = (
        CacheDataset(items, transforms, progress=False)
        if keep is None
        else PersistentDataset(items, transforms, cache_dir=keep)
    )

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
    files = [store.root / f"plain_{scan}.npy" for scan in range(len(store))]
    for scan, path in enumerate(files):
        np.save(path, copy(store).read_volume(scan))

    def run() -> None:
        maps = [np.load(path, mmap_mode="r") for path in files]
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
