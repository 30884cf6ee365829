"""The mask of the body in a scan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medcl3d.preprocessing.intensity_kind import Kind
from medcl3d.preprocessing.percentiles import percentiles_of

_AIR_HU = -400.0  # between air (-1000) and fat (-100); a scan without voxels below it shows no air
# A body fills at least a tenth of its scan (less is a hot spot of a PET) and is one component.
_MIN_BODY, _MAX_BODY, _MIN_SHARE = 0.1, 0.9, 0.75
_BINS = 256

# Slices of voxels and of their next neighbours along each axis.
_NEIGHBOURS = [
    tuple((*[slice(None)] * axis, part) for part in (slice(None, -1), slice(1, None))) for axis in range(3)
]


@dataclass(frozen=True)
class Body:
    """The body in a scan.

    box     ``((d, h, w), (d, h, w))`` first and last-plus-one voxel
    method  how it was found; "whole scan" if there is no air around a single body
    mask    ``Bool[X, Y, Z]`` voxels that intensities are measured on: the body, or all that is not air
            if no single body was found; None for every voxel
    """

    box: tuple[tuple[int, ...], tuple[int, ...]]
    method: str
    mask: np.ndarray | None

    @property
    def fraction(self) -> float:
        """The fraction of the scan's voxels that intensities are measured on."""
        return 1.0 if self.mask is None else float(self.mask.mean())


def find_body(voxels: np.ndarray, kind: Kind) -> Body:
    """The largest connected component brighter than air, holes filled, in ``Float32[C, X, Y, Z]``.

    The threshold is Otsu's (1979) between the robust extremes, or in HU for CT. A crop inside a body has no
    air, since its dark class is tissue; all of it is body. Air is near the scan's minimum, uniform, and on
    most of the border.
    """
    whole = Body(((0, 0, 0), tuple(voxels.shape[1:])), "whole scan", None)
    if kind == "none":
        return whole
    if kind == "ct":
        # A window in HU needs no mask.
        return _largest(voxels.mean(axis=0) > _AIR_HU, "HU threshold, largest component") or whole
    scan = voxels[0] if len(voxels) == 1 else np.mean([_unit_range(channel) for channel in voxels], axis=0)
    unit = _unit_range(scan)
    if unit.min() == unit.max():
        return whole
    threshold = _otsu(unit)
    middle, upper = percentiles_of(unit[unit <= threshold], (50, 75))
    # Air around a body: its typical value is at the bottom of the range and its spread is narrow.
    if middle > 0.25 * threshold or upper > 0.5 * threshold:
        return whole
    bright = unit > max(0.5 * threshold, upper)
    return _largest(bright, "half Otsu threshold, largest component") or Body(whole.box, whole.method, bright)


def _unit_range(scan: np.ndarray) -> np.ndarray:
    low, high = percentiles_of(scan, (0.5, 99.5))
    return np.clip((scan - low) / max(high - low, float(np.finfo(np.float32).tiny)), 0.0, 1.0)


def _otsu(unit: np.ndarray) -> float:
    """Otsu's threshold of values in [0, 1], from a histogram of `_BINS` bins.

    The bins are those of `np.histogram`, since `_BINS` is a power of two, at a part of its time.
    """
    from skimage.filters import threshold_otsu

    bins = np.minimum(unit * np.float32(_BINS), _BINS - 1).astype(np.uint8)
    counts = np.bincount(bins.reshape(-1), minlength=_BINS)
    return float(threshold_otsu(hist=(counts, (np.arange(_BINS) + 0.5) / _BINS)))


def _largest(mask: np.ndarray, method: str) -> Body | None:
    """The largest component of a mask, or None if it is not a body in air."""
    from scipy.ndimage import label

    opened = _opened(mask)  # removes specks of noise
    parts, number = label(opened if opened.any() else mask)
    if number == 0:
        return None
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    largest = int(sizes.argmax())
    if sizes[largest] < _MIN_SHARE * mask.sum():
        return None
    body = parts == largest
    inside = [np.flatnonzero(body.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    box = tuple(slice(int(n[0]), int(n[-1]) + 1) for n in inside)
    body[box] = _filled(body[box])
    border = np.concatenate([np.take(body, i, axis).ravel() for axis in range(3) for i in (0, -1)])
    if not _MIN_BODY <= body.mean() <= _MAX_BODY or border.mean() > 0.6:
        return None
    return Body((tuple(s.start for s in box), tuple(s.stop for s in box)), method, body)


def _opened(mask: np.ndarray) -> np.ndarray:
    """Opening of a mask by a cross of 7 voxels, without one at the border.

    As `skimage.morphology.opening`, whose filter for grey values is a hundred times slower.
    """
    eroded = mask.copy()
    for before, after in _NEIGHBOURS:
        eroded[before] &= mask[after]
        eroded[after] &= mask[before]
    opened = eroded.copy()
    for before, after in _NEIGHBOURS:
        opened[before] |= eroded[after]
        opened[after] |= eroded[before]
    return opened


def _filled(body: np.ndarray) -> np.ndarray:
    """A body in its bounding box, holes filled: parts of the background that do not reach a face of the box.

    As `scipy.ndimage.binary_fill_holes`, which dilates the background voxel by voxel.
    """
    from scipy.ndimage import label

    outside, number = label(~body)
    reaches = np.zeros(number + 1, dtype=bool)
    for axis in range(3):
        for end in (0, -1):
            reaches[np.take(outside, end, axis)] = True
    reaches[0] = False  # the body itself
    return ~reaches[outside]
