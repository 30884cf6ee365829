"""Boxes of voxels and the views that strategies draw."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Real

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Box:
    """Voxels ``start <= index < start + size`` of a stored scan. It may reach past the scan's border."""

    start: Triple
    size: Triple

    @property
    def stop(self) -> Triple:
        """The first index past the box, per axis."""
        d, h, w = (a + b for a, b in zip(self.start, self.size, strict=True))
        return d, h, w

    @property
    def center(self) -> Float64[np.ndarray, 3]:
        """``Float64[3]`` voxel coordinates of its middle."""
        return np.array(self.start) + (np.array(self.size) - 1) / 2


@dataclass(frozen=True)
class ViewSpec:
    """One view to be made: the part of a scan, its role, and the grid that it is resampled to.

    `role` groups views that one forward pass takes together ("global", "local"); `shape` is the
    grid of the view in voxels (default: the box's own size, so nothing is resampled). `key_box` is the box
    in the keys of strategies, if a placebo replaces the one that is read.
    """

    scan: int
    box: Box
    role: str = "global"
    shape: Triple | None = None
    key_box: Box | None = None

    @property
    def out_shape(self) -> Triple:
        """The grid of the view in voxels."""
        return self.shape or self.box.size


def triple(value: Real[np.ndarray, 3] | Iterable[int]) -> Triple:
    """Three integers as a tuple."""
    d, h, w = (int(v) for v in value)
    return d, h, w
