"""A patch size from the shapes and the spacing of scans, with strides of an encoder that fit it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from medcl3d.core.geometry import Triple, triple

HALVINGS = 3
"""Strides of 2 along each axis in the packaged U-Net: its coarsest map has an eighth of a patch's voxels."""
COARSEST = 2
"""Voxels that the coarsest map keeps along an axis, if the patch has as many."""
ROOM = 7 / 8
"""Largest share of a scan that a patch may fill along every axis; otherwise crops could not differ."""


def suggested_patch_size(shapes: ArrayLike, spacings: ArrayLike, longest: int) -> Triple:
    """A patch for contrastive crops, in voxels.

    shapes    ``Int[n, 3]`` voxels of the scans
    spacings  ``Float[n, 3]`` mm per voxel
    longest   the longest edge in voxels, a choice of memory and time

    The patch is about a cube in mm: an axis of thick slices has fewer voxels. It fits into three quarters of
    the scans, and is shorter than they are along at least one axis, so that crops differ.
    """
    fits = np.quantile(np.asarray(shapes), 0.25, axis=0)
    spacing = np.median(np.asarray(spacings), axis=0)
    edges = longest * spacing.min() / spacing  # of a cube
    patch = np.array([_whole(min(edge, fit)) for edge, fit in zip(edges, fits, strict=True)])
    if (patch > ROOM * fits).all():
        smaller = [_whole(ROOM * fit) for fit in fits]
        long = patch >= COARSEST << HALVINGS
        patch = np.where(long if long.any() else True, smaller, patch)
    return triple(patch.tolist())


def strides_for(patch: Sequence[int]) -> list[int | list[int]]:
    """Strides of the stages of a U-Net, finest first: none along a short axis until later stages."""
    halved = np.array([_halvings(edge) for edge in patch])
    stages = [np.where(halved >= HALVINGS - stage, 2, 1).tolist() for stage in range(HALVINGS)]
    return [1, *(stage[0] if len(set(stage)) == 1 else stage for stage in stages)]


def _halvings(edge: float) -> int:
    """How often an edge can be halved and keep `COARSEST` voxels, `HALVINGS` at most."""
    return int(np.clip(np.log2(max(edge, 1) / COARSEST), 0, HALVINGS))


def _whole(edge: float) -> int:
    """The largest multiple of an axis's stride up to `edge`; at least 1."""
    multiple = 1 << _halvings(edge)
    return max(1, int(edge + 1e-6) // multiple * multiple)
