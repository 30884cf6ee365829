"""Corresponding crops: two scans, one position in the body."""

from __future__ import annotations

import numpy as np

from medcl3d.core.collection import Collection
from medcl3d.core.geometry import Box, ViewSpec, triple
from medcl3d.pairs.boxes import random_box, start_at

TRIES = 20


def corresponding_crops(
    collection: Collection, scan: int, other: int, jitter_mm: float, rng: np.random.Generator
) -> tuple[ViewSpec, ViewSpec]:
    """A crop of `scan` and the crop of `other` at the same position, within `jitter_mm` along each axis.

    Positions are matched in world mm within a frame, else in body coordinates. If `other` does not reach a
    position, another is drawn, up to `TRIES` times; then the nearest one is used.
    """
    best: tuple[float, Box, Box] | None = None
    for _ in range(TRIES):
        box = random_box(collection, scan, rng)
        position = collection.corresponding_point(scan, other, box.center) + rng.uniform(
            -jitter_mm, jitter_mm, 3
        )
        start, miss_mm = start_at(collection, other, position)
        if best is None or miss_mm < best[0]:
            best = miss_mm, box, Box(triple(start), collection.patch_size)
        if miss_mm == 0:
            break
    assert best is not None
    return ViewSpec(scan, best[1]), ViewSpec(other, best[2])
