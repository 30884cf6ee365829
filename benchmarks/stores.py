"""Benchmark of stores: crops read per second and bytes on disk, of .npy files and blosc2."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np

from benchmarks.measure import Bench, Table, by, geometric, one_core, turns_of
from medcl3d.core.geometry import Box
from medcl3d.store.store import Store

EDGES = (32, 64, 96)  # voxels per axis of a crop


def stores(bench: Bench) -> Table:
    """One cohort in both file formats, read at the same random positions in alternating turns."""
    columns = ("", "npy", "blosc2", "blosc2 / npy")
    if find_spec("blosc2") is None:
        return Table(
            "Stores",
            columns,
            (("blosc2", "-", "-", "not measured"),),
            "Not installed: pip install 'medcl3d[blosc2]'.",
        )
    shapes = bench.store.collection.shapes
    edges = [edge for edge in EDGES if (shapes >= edge).all(axis=1).any()]
    note = (
        f"Volumes of {by(shapes.min(axis=0))} to {by(shapes.max(axis=0))} voxels in float16, processor time "
        f"of one core, {turns_of(bench.scale.repeats)}, blosc2 {version('blosc2')}, all files cached: the "
        "cost of decompression without waiting for a disk. Compression depends on the noise of scans "
        "and on the fraction that is empty; these are simulated."
    )
    both = {"npy": bench.store, "blosc2": bench.prepared("compressed", store="blosc2")}
    if both["npy"].fingerprint() != both["blosc2"].fingerprint():
        raise RuntimeError("the two stores have different voxels")
    megabytes = [
        sum(s["stored_bytes"] + s.get("label_bytes", 0) for s in store.scans) / 1e6 for store in both.values()
    ]
    rows = [("MB on disk", *(f"{value:.1f}" for value in megabytes), f"{megabytes[1] / megabytes[0]:.2f}")]
    for edge in edges:
        num = max(1, bench.scale.crops * 32 // edge)  # fewer large crops
        with one_core():
            works = {kind: _reading(store, edge, num) for kind, store in both.items()}
            seconds = bench.turns(f"crops of {by((edge,) * 3)}", works)
        rates = (geometric(num / one) for one in seconds.values())
        rows.append(
            (
                f"crops of {by((edge,) * 3)} per second",
                *rates,
                geometric(seconds["npy"] / seconds["blosc2"], ".2f"),
            )
        )
    return Table("Stores", columns, tuple(rows), note)


def _reading(store: Store, edge: int, num: int) -> Callable[[], None]:
    rng = np.random.default_rng(0)
    scans = rng.choice(np.flatnonzero((store.collection.shapes >= edge).all(axis=1)), num)
    starts = [rng.integers(0, store.collection.shapes[scan] - edge + 1) for scan in scans]

    def read() -> None:
        for scan, start in zip(scans, starts, strict=True):
            store.read_crop(int(scan), Box(tuple(start.tolist()), (edge, edge, edge)))

    return read
