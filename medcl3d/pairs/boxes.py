"""Positions of boxes inside scans, and their overlap in millimetres."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Real
from torch import Tensor

from medcl3d.core.collection import Collection
from medcl3d.core.equal_pairs import Pairs, equal_pairs
from medcl3d.core.geometry import Box, Triple, triple
from medcl3d.core.keys import Keys

ALIGNED = 1e-3
"""Largest difference between the axes, as unit vectors, of scans whose boxes are compared."""


def start_range(collection: Collection, scan: int) -> tuple[Int[np.ndarray, 3], Int[np.ndarray, 3]]:
    """First and last start of a patch in a scan, ``Int[3]`` each.

    A patch is inside the scan with its centre inside the body; along an axis on which the scan is
    smaller than the patch, the patch contains the scan. At least one start exists: the centre of an even
    patch is between two voxels, half a voxel from the middle of a body of one voxel.
    """
    size, shape = np.array(collection.patch_size), collection.shapes[scan]
    low, high = np.minimum(0, shape - size), np.maximum(0, shape - size)
    body_low, body_stop = collection.body_boxes[scan]
    middle = (size - 1) / 2
    first = np.ceil(body_low - middle)
    last = np.maximum(first, np.floor(body_stop - 1 - middle))
    return np.clip(first, low, high).astype(np.int64), np.clip(last, low, high).astype(np.int64)


def random_box(collection: Collection, scan: int, rng: np.random.Generator) -> Box:
    """A patch at a uniform position inside the body of a scan."""
    low, high = start_range(collection, scan)
    return Box(triple(rng.integers(low, high + 1)), collection.patch_size)


def slab_size(collection: Collection, scan: int, axis: int, thickness_mm: float | None) -> Triple:
    """Size in voxels of a slab that is `thickness_mm` thick along an axis (None: as thick as a patch)."""
    size = list(collection.patch_size)
    if thickness_mm is not None:
        size[axis] = max(1, round(thickness_mm / collection.spacings[scan, axis]))
    return triple(size)


def whole_body_across(collection: Collection, scan: int, axis: int, slab: Box) -> Box:
    """A slab widened in its plane to the whole body, centred on the body.

    Its in-plane sides have the ratio of the patch's sides in voxels, so that resampling to the patch scales
    both by one factor. One side is as long as the body; the other extends past the body equally at both ends.
    """
    low, stop = collection.body_boxes[scan]
    patch, across = np.array(collection.patch_size), np.arange(3) != axis
    factor = ((stop - low) / patch)[across].max()
    beyond = np.where(across, np.ceil((factor * patch - (stop - low)) / 2 - 1e-9), 0).astype(np.int64)
    start = np.where(across, low - beyond, slab.start)
    return Box(triple(start), triple(np.where(across, stop + beyond, slab.stop) - start))


def start_at(
    collection: Collection, scan: int, place_mm: Float[np.ndarray, 3]
) -> tuple[Int[np.ndarray, 3], float]:
    """The start of the patch with its centre nearest to a position in world mm, and the missed distance, mm.

    The distance is 0 for a position that the scan reaches, although the centre is rounded to a voxel. Each
    voxel index is rounded and clipped separately: on a sheared scan another start may be nearer by some mm.
    The distance is in world mm on any scan.
    """
    affine = collection.affines[scan]
    voxel = np.linalg.solve(affine[:3, :3], place_mm - affine[:3, 3])
    wanted = np.round(voxel - (np.array(collection.patch_size) - 1) / 2)
    start = np.clip(wanted, *start_range(collection, scan))
    return start.astype(np.int64), float(np.linalg.norm(affine[:3, :3] @ (start - wanted)))


def iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes of one scan.

    Within one scan it is the same in voxels and in mm: the grid is a linear map of mm, and linear maps
    preserve ratios of volumes.
    """
    overlap = np.minimum(first.stop, second.stop) - np.maximum(first.start, second.start)
    shared = float(np.prod(np.maximum(overlap, 0)))
    return shared / (float(np.prod(first.size)) + float(np.prod(second.size)) - shared)


def iou_mm(rows: Keys, cols: Keys) -> Float64[Tensor, "N M"]:
    """``Float64[N, M]`` intersection over union of the views' boxes, in the mm of their scan's own axes.

    It equals the ratio of the volumes in world mm, on sheared scans too. Boxes of scans that share a frame
    are compared if their axes agree; otherwise, and across frames, the value is 0.
    """
    pairs = equal_pairs(rows.frame, cols.frame)
    if pairs is not None:
        every = torch.zeros(len(rows), len(cols), dtype=torch.float64)
        every.numpy()[pairs] = iou_at(rows, cols, pairs)
        return every
    aligned = torch.cdist(rows.axes.flatten(1), cols.axes.flatten(1), p=torch.inf) < ALIGNED
    centers, sizes = cols.center_mm.T[None], cols.size_mm.T[None]
    every = _iou_along(_inverse(rows.axes), rows.center_mm, rows.size_mm, centers, sizes)
    return torch.where((rows.frame[:, None] == cols.frame) & aligned, every, 0.0)


def iou_at(rows: Keys, cols: Keys, pairs: Pairs) -> Float64[np.ndarray, " K"]:
    """`iou_mm` of some pairs of one frame, on a CPU."""
    first = rows.axes[:1]
    if bool((rows.axes == first).all()) and bool((cols.axes == first).all()):  # the usual case, and faster
        return _iou_of_aligned(rows, cols, pairs)
    row, col = (torch.from_numpy(index) for index in pairs)
    center, size = cols.center_mm[col, :, None], cols.size_mm[col, :, None]
    to_axes = _inverse(rows.axes)[row]
    found = _iou_along(to_axes, rows.center_mm[row], rows.size_mm[row], center, size)[:, 0]
    aligned = (rows.axes[row] - cols.axes[col]).abs().amax((-1, -2)) < ALIGNED
    return np.asarray(torch.where(aligned, found, 0.0))


def _iou_of_aligned(rows: Keys, cols: Keys, pairs: Pairs) -> Float64[np.ndarray, " K"]:
    """As `_iou_along`, if all rows and columns have the same axes."""
    row, col = pairs
    offset = torch.from_numpy(cols.center_mm.numpy().take(col, 0) - rows.center_mm.numpy().take(row, 0))
    along = (_inverse(rows.axes[:1])[0] @ offset.T).T.numpy()  # by torch, to the bit as in `_iou_along`
    size, other_size = rows.size_mm.numpy().take(row, 0), cols.size_mm.numpy().take(col, 0)
    half, other_half = size / 2, other_size / 2
    overlap = np.minimum(half, along + other_half) - np.maximum(-half, along - other_half)
    shared, volume, other_volume = (
        a[:, 0] * a[:, 1] * a[:, 2] for a in (np.maximum(overlap, 0), size, other_size)
    )
    return np.asarray(shared / (volume + other_volume - shared))


def _inverse(axes: Float64[Tensor, "N 3 3"]) -> Float64[Tensor, "N 3 3"]:
    """From world axes to those of each scan: the inverse, which is the transpose for orthogonal axes only."""
    inverse: Tensor = torch.linalg.inv_ex(axes).inverse  # without reading whether it exists
    return inverse


def _iou_along(
    to_axes: Float64[Tensor, "N 3 3"],
    center: Float64[Tensor, "N 3"],
    size: Float64[Tensor, "N 3"],
    centers: Float64[Tensor, "_ 3 M"],
    sizes: Float64[Tensor, "_ 3 M"],
) -> Float64[Tensor, "N M"]:
    """IoU of each row's box with M boxes, its own or those of all rows (`_` is N or 1), along its axes."""
    offset = to_axes @ (centers - center[:, :, None])
    half_row, half_col = size[:, :, None] / 2, sizes / 2
    overlap = torch.minimum(half_row, offset + half_col) - torch.maximum(-half_row, offset - half_col)
    shared = overlap.clamp_(min=0).prod(1)
    return shared / (size.prod(1)[:, None] + sizes.prod(1) - shared)


def distance_mm(rows: Keys, cols: Keys) -> Float64[Tensor, "N M"]:
    """``Float64[N, M]`` mm between points; infinite across frames, where mm are undefined."""
    distance = torch.cdist(rows.position_mm, cols.position_mm, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.where(rows.frame[:, None] == cols.frame, distance, torch.inf)


def gap_mm(rows: Keys, cols: Keys, axis: int) -> Float64[Tensor, "N M"]:
    """``Float64[N, M]`` mm between the views' centres, measured along an axis of the row's scan.

    Slices k apart have a gap of k times the spacing, at any in-plane position. On a sheared scan the distance
    between two planes along their normal is smaller.
    """
    offset = cols.center_mm - rows.center_mm[:, None]
    return torch.einsum("nmi,ni->nm", offset, torch.linalg.inv_ex(rows.axes).inverse[:, axis]).abs()


def overlap_offset(
    size: Real[np.ndarray, 3], max_shift: Real[np.ndarray, 3], target_iou: float, rng: np.random.Generator
) -> Float64[np.ndarray, 3]:
    """A shift, ``Float[3]`` voxels, that gives two boxes of one size the target IoU.

    size: voxels; max_shift: largest shift along each axis, voxels. Along an axis the boxes share the
    fraction f = 1 - shift / size; the product of the three must be F = 2 IoU / (1 + IoU). The
    fractions are drawn log-uniformly among those that `max_shift` allows, in a random order of the axes.
    """
    shared = 2 * target_iou / (1 + target_iou)
    least = 1 - np.minimum(max_shift, size) / size
    fraction = np.ones(3)
    order = rng.permutation(3)
    for position, axis in enumerate(order):
        rest = order[position + 1 :]
        low = max(least[axis], shared / np.prod(fraction))
        high = min(1.0, shared / (np.prod(fraction) * max(np.prod(least[rest]), 1e-9)))
        low, high = max(min(low, high), 1e-6), max(high, 1e-6)
        fraction[axis] = np.exp(rng.uniform(np.log(low), np.log(high))) if len(rest) else low
    return np.asarray((1 - fraction) * size * rng.choice([-1, 1], 3))
