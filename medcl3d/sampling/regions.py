"""Regions of points: classes of a scan's label map, or supervoxels of a part of the scan."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64

from medcl3d.core.geometry import Box, triple
from medcl3d.store.store import Store

COMPACTNESS = 0.1  # of supervoxels; intensities have a standard deviation of about 1 over the body


def regions_at(
    store: Store, row: int, voxels: Float64[np.ndarray, "P 3"], supervoxel_mm: float | None
) -> Int64[np.ndarray, " P"]:
    """The region of each position ``[P, 3]`` in voxels of a scan, ``Int64[P]``; -1: unknown.

    supervoxel_mm: edge of the supervoxels (SLIC) of the box around the positions, numbered from 1; None:
    classes of the label map, at the nearest voxel.
    """
    if supervoxel_mm is None and not store.has_label(row):
        return np.full(len(voxels), -1, dtype=np.int64)
    nearest = np.clip(np.round(voxels).astype(np.int64), 0, np.array(store.collection.shapes[row]) - 1)
    low, high = nearest.min(0), nearest.max(0) + 1
    box = Box(triple(low), triple(high - low))
    if supervoxel_mm is None:
        found = store.read_label(row, box)
    else:
        found = supervoxels(store.read_crop(row, box), store.spacing_mm(row), supervoxel_mm)
    return np.asarray(found[tuple((nearest - low).T)].astype(np.int64))


def supervoxels(crop: np.ndarray, spacing_mm: np.ndarray, edge_mm: float) -> np.ndarray:
    """``Int[D, H, W]``: the supervoxel of each voxel of ``[C, D, H, W]``, from 1 on."""
    from skimage.segmentation import slic

    volume = np.moveaxis(crop.astype(np.float64), 0, -1)
    number = max(1, round(float(np.prod(np.array(crop.shape[1:]) * spacing_mm)) / edge_mm**3))
    found: np.ndarray = slic(
        volume, number, COMPACTNESS, spacing=tuple(spacing_mm), channel_axis=-1, start_label=1
    )
    return found
