"""The voxels of a scan that dense probes use: the body, regular grids within a budget, and samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt

from medcl3d.core.errors import ConfigError
from medcl3d.downstream.patch_dataset import class_indices
from medcl3d.preprocessing.body_mask import find_body
from medcl3d.store.store import Store

BORDER_MM = 6.0
"""The mask of the body is widened by this, since dark tissue at the skin, bone and fluid is outside of it."""
NEAR_MM = 10.0
"""Background nearer than this to a structure is sampled more densely, since it decides the boundary."""
SHARES = {"structures": 0.5, "near": 0.375, "far": 0.125}
"""Shares of a sample that structures, background near them, and other background get."""
GROWTH = 1.02  # of the grid's step, until the grid fits into its budget


def body_of(store: Store, scan: int) -> np.ndarray:
    """``Bool[D, H, W]``: voxels of the body, with a border; its box if no air surrounds it (CT, crops)."""
    inside = np.zeros(tuple(store.collection.shapes[scan]), dtype=bool)
    low, high = store.collection.body_boxes[scan]
    inside[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    if store.scans[scan]["options"]["kind"] != "mri":  # thresholds in HU do not hold for stored intensities
        return inside
    mask = find_body(store.read_volume(scan), "mri").mask
    if mask is None or not mask.any():
        return inside
    wide: np.ndarray = distance_transform_edt(~mask, sampling=store.collection.spacings[scan]) <= BORDER_MM
    return wide & inside


def grid_of(mask: np.ndarray, spacing_mm: np.ndarray, most: int) -> np.ndarray:
    """``Int[N, 3]``: voxels of a mask on the finest regular grid, equal in mm, that has at most `most`."""
    found: np.ndarray = np.argwhere(mask)
    if len(found) <= most:
        return found
    step = float((len(found) * np.prod(spacing_mm) / most) ** (1 / 3))
    while True:
        axes = [
            np.unique(np.rint(np.arange(0, n, max(1.0, step / mm))).astype(int).clip(max=n - 1))
            for n, mm in zip(mask.shape, spacing_mm, strict=True)
        ]
        chosen: np.ndarray = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
        chosen = chosen[mask[tuple(chosen.T)]]
        if len(chosen) <= most:
            return chosen
        step *= GROWTH


def nearest_to_centroid(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """``Int[3]``: the one of voxels ``[N, 3]`` that is nearest to their centroid in mm."""
    offset = (voxels - voxels.mean(0)) @ affine[:3, :3].T
    nearest: np.ndarray = voxels[np.square(offset).sum(1).argmin()]
    return nearest


@dataclass(frozen=True)
class Structures:
    """The structures that are measured: label value -> name, sorted."""

    names: dict[int, str]

    @staticmethod
    def largest(store: Store, scans: Sequence[int], most: int) -> Structures:
        """The `most` structures with the largest volume in labelled scans. ConfigError if none exists."""
        values = max(store.label_names, default=0) + 1
        total = np.zeros(values)
        for scan in scans:
            counts = np.bincount(store.read_label(scan).ravel(), minlength=values)[:values]
            total += counts * float(np.prod(store.collection.spacings[scan]))
        order = [int(value) for value in np.argsort(-total, kind="stable") if value and total[value]]
        chosen = sorted(value for value in order[:most] if value in store.label_names)
        if not chosen:
            raise ConfigError(
                f"{store.root}: the label maps of the training patients have no structure; prepare scans "
                "with their label maps"
            )
        return Structures({value: store.label_names[value] for value in chosen})

    def __len__(self) -> int:
        return len(self.names)

    def of(self, store: Store, scan: int) -> np.ndarray:
        """Class indices ``Int16[D, H, W]`` of a scan: 1, 2, ... in the order of `names`, 0 for the rest."""
        return class_indices(store.read_label(scan), tuple(self.names))


@dataclass(frozen=True)
class VoxelSample:
    """Labelled voxels ``Int[N, 3]``, their classes ``Int[N]``, and weights that restore frequencies."""

    voxels: np.ndarray
    classes: np.ndarray
    weights: np.ndarray


def stratified(
    classes: np.ndarray, spacing_mm: np.ndarray, number: int, rng: np.random.Generator
) -> VoxelSample:
    """At most `number` voxels of a scan with classes ``[D, H, W]``: half from structures, equally many each.

    The other half is background, three quarters of it near structures. A stratum with fewer voxels than its
    share is taken whole. The weights of a stratum sum to its size.
    """
    flat = classes.ravel()
    near = (flat == 0) & (distance_transform_edt(classes == 0, sampling=spacing_mm) <= NEAR_MM).ravel()
    present = [int(value) for value in np.unique(flat) if value]
    strata = [(np.flatnonzero(flat == v), SHARES["structures"] / len(present)) for v in present]
    strata += [(np.flatnonzero(near), SHARES["near"])]
    strata += [(np.flatnonzero((flat == 0) & ~near), SHARES["far"])]
    chosen, weights = [], []
    for members, share in strata:
        size = min(len(members), max(1, int(number * share)))
        if size:
            chosen.append(np.sort(rng.choice(members, size, replace=False)))
            weights.append(np.full(size, len(members) / size))
    index = np.concatenate(chosen)
    voxels = np.stack(np.unravel_index(index, classes.shape), axis=1)
    return VoxelSample(voxels, flat[index].astype(np.int64), np.concatenate(weights))
