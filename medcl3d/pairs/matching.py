"""Crops of two scans at one place of the body."""

from __future__ import annotations

import numpy as np

from medcl3d.data.collection import Collection
from medcl3d.pairs.boxes import random_box, start_at
from medcl3d.types import Box, ViewSpec, triple

TRIES = 20


def matched_crops(collection: Collection, scan: int, other: int, jitter_mm: float, rng: np.random.Generator) -> tuple[ViewSpec, ViewSpec]:
    """A crop of `scan` and the one of `other` at the same place, within `jitter_mm` along each axis.

    In one frame that is the same world mm, else the same body coordinates. Where `other` does not reach a
    place, another is drawn, and in the end the nearest that it has is taken.
    """
    best: tuple[float, Box, Box] | None = None
    for _ in range(TRIES):
        box = random_box(collection, scan, rng)
        place = collection.matched(scan, other, box.center) + rng.uniform(-jitter_mm, jitter_mm, 3)
        start, miss_mm = start_at(collection, other, place)
        if best is None or miss_mm < best[0]:
            best = miss_mm, box, Box(triple(start), collection.patch_size)
        if miss_mm == 0:
            break
    assert best is not None
    return ViewSpec(scan, best[1]), ViewSpec(other, best[2])
