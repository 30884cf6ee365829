"""Body segmentation, and normalisation of intensities."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["mri", "ct", "none"]

_AIR_HU = -400.0  # between air (-1000) and fat (-100); a scan without voxels below it shows no air
# Modality names of CT: CT, CTA, CTP, CE-CT, cbct, ct_abdomen, ...; not OCT, and not PET/CT, which is
# ambiguous.
_CT = re.compile(r"(?<![a-z])(?:ce|nc|cb|ld|hr)?ct[ap]?(?![a-z0-9])", re.IGNORECASE)
_PET = re.compile(r"pet|(?<![a-z])pt(?![a-z])", re.IGNORECASE)
_SHAPE = "shape"  # the modality of scans that are masks
_STRIDE = 7  # between the voxels that are examined
_FEW_VALUES = 20
# A body fills at least a tenth of its scan (less is a hot spot of a PET) and is one component.
_MIN_BODY, _MAX_BODY, _MIN_SHARE = 0.1, 0.9, 0.75


def kind_of(modality: str) -> Kind:
    """The normalisation of a modality, by its name.

    ct: a window in HU; none, for shapes: unchanged; mri, for all others: from the scan's own values.
    """
    if modality.lower() == _SHAPE:
        return "none"
    names = modality.split("+")  # of several channels
    return "ct" if all(_CT.search(name) and not _PET.search(name) for name in names) else "mri"


Levels = tuple[float, float]


def mask_levels(channel: np.ndarray, kind: Kind) -> Levels | None:
    """The two values of a channel ``Float32[X, Y, Z]`` that is a mask, or None.

    Two values are a mask for `mri`, and for `ct` unless one is negative, since a mask has no HU. `none` is
    never a mask.
    """
    low, high = float(channel.min()), float(channel.max())
    if kind == "none" or low == high or (kind == "ct" and low < 0):
        return None
    for values in (
        channel.reshape(-1)[:: 64 * _STRIDE],
        channel,
    ):  # a few voxels suffice to exclude most scans
        if not ((values == low) | (values == high)).all():
            return None
    return low, high


def kind_warnings(voxels: np.ndarray, kind: Kind) -> list[str]:
    """A warning if ``Float32[C, X, Y, Z]`` as MR looks like HU, as CT does not, or has only two values."""
    if any(mask_levels(channel, kind) for channel in voxels):
        return [
            f"only two values, {voxels.min():g} and {voxels.max():g}: it is a mask, and stored as 0 and 1"
        ]
    values = voxels.reshape(-1)[::_STRIDE]
    low, median, high = (float(v) for v in np.percentile(values, (0.5, 50, 99.5)))
    of_values = f"values from {low:.4g} to {high:.4g}"
    # HU: air -1000, outside of the scanner's circle down to -3024, fat and water about 0, bone and metal
    # above.
    if kind == "mri" and -3100 <= low <= -800 and 50 <= high <= 5000:
        return [
            f"{of_values} look like CT in HU but are treated as MR; "
            "name the modality CT, or prepare with intensity=ct"
        ]
    if kind == "ct" and (values.min() >= 0 or high - low < 30 or not -1100 <= median <= 3100):
        return [
            f"{of_values} do not look like HU (air -1000, water 0): are slope and intercept lost? "
            "set intensity if this is not CT"
        ]
    return []


def label_warnings(voxels: np.ndarray) -> list[str]:
    """A warning if ``Float32[C, X, Y, Z]`` has few values, all whole: image and label may be swapped."""
    values = voxels.reshape(-1)[::_STRIDE]
    # A sample suffices for nearly all images; sorting all values would take seconds.
    if len(np.unique(values[:: max(1, len(values) // 10_000)])) > _FEW_VALUES:
        return []
    found = np.unique(values)
    if len(found) > _FEW_VALUES or (found != np.round(found)).any():
        return []
    return [
        f"contains only {len(found)} whole numbers, {found[0]:g} to {found[-1]:g}: a label map or a shape, "
        "not an image; name label maps in a table, or use source=folder with label="
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
    scan = voxels[0] if len(voxels) == 1 else np.mean([_unit_range(channel) for channel in voxels], axis=0)
    if kind == "ct":
        # A window in HU needs no mask.
        return _largest(scan > _AIR_HU, "HU threshold, largest component") or whole
    from skimage.filters import threshold_otsu

    unit = _unit_range(scan)
    if unit.min() == unit.max():
        return whole
    threshold = float(threshold_otsu(unit.ravel()))  # flattened, since a last axis of 3 is taken for colours
    dark = unit[unit <= threshold]
    # Air around a body: its typical value is at the bottom of the range and its spread is narrow.
    if np.median(dark) > 0.25 * threshold or np.percentile(dark, 75) > 0.5 * threshold:
        return whole
    bright = unit > max(0.5 * threshold, float(np.percentile(dark, 75)))
    return _largest(bright, "half Otsu threshold, largest component") or Body(whole.box, whole.method, bright)


def _unit_range(scan: np.ndarray) -> np.ndarray:
    low, high = np.percentile(scan, (0.5, 99.5))
    return np.clip((scan - low) / max(float(high - low), np.finfo(np.float32).tiny), 0.0, 1.0)


def _largest(mask: np.ndarray, method: str) -> Body | None:
    """The largest component of a mask, or None if it is not a body in air."""
    from scipy.ndimage import binary_fill_holes, find_objects
    from skimage.measure import label
    from skimage.morphology import opening

    cross = np.zeros((3, 3, 3), bool)
    cross[1, 1, :] = cross[1, :, 1] = cross[:, 1, 1] = True
    opened = opening(mask, cross)  # removes specks of noise
    parts = label(opened if opened.any() else mask, connectivity=1)
    sizes = np.bincount(parts.ravel())
    if len(sizes) < 2:
        return None
    sizes[0] = 0
    if sizes.max() < _MIN_SHARE * mask.sum():
        return None
    body = binary_fill_holes(parts == int(sizes.argmax()))
    border = np.concatenate([np.take(body, i, axis).ravel() for axis in range(3) for i in (0, -1)])
    if not _MIN_BODY <= body.mean() <= _MAX_BODY or border.mean() > 0.6:
        return None
    found = find_objects(body.astype(np.int8))[0]
    return Body((tuple(s.start for s in found), tuple(s.stop for s in found)), method, body)


@dataclass(frozen=True)
class Normalisation:
    """Normalisation per channel: ``clip(x, low, high) * scale + shift``; `fill` is empty space after it."""

    kind: Kind
    low: tuple[float, ...]
    high: tuple[float, ...]
    scale: tuple[float, ...]
    shift: tuple[float, ...]
    fill: tuple[float, ...]


def normalise(
    voxels: np.ndarray,
    kind: Kind,
    body: Body,
    *,
    percentiles: tuple[float, float],
    window_hu: tuple[float, float],
    levels: Sequence[Levels | None] | None = None,
) -> tuple[np.ndarray, Normalisation]:
    """Normalise the intensities of ``Float32[C, X, Y, Z]``.

    levels  `mask_levels` of each channel before resampling; the two values of a mask become 0 and 1

    mri   clip at percentiles of the body, then zero mean and unit standard deviation within it (the grey
          values of MR have no unit: Nyul and Udupa 1999)
    ct    a window in HU to [-1, 1]
    none  unchanged
    """
    channels = [
        _channel(channel, kind, body, percentiles, window_hu)
        if of is None
        else (*of, 1 / (of[1] - of[0]), -of[0] / (of[1] - of[0]), 0.0)
        for channel, of in zip(voxels, levels or [None] * len(voxels), strict=True)
    ]
    pairs = zip(voxels, channels, strict=True)
    out = np.stack([np.clip(v, low, high) * scale + shift for v, (low, high, scale, shift, _) in pairs])
    low, high, scale, shift, fill = (tuple(float(c[i]) for c in channels) for i in range(5))
    return out.astype(np.float32), Normalisation(kind, low, high, scale, shift, fill)


def _channel(
    channel: np.ndarray,
    kind: Kind,
    body: Body,
    percentiles: tuple[float, float],
    window_hu: tuple[float, float],
) -> tuple[float, float, float, float, float]:
    if kind == "none":
        return float(channel.min()), float(channel.max()), 1.0, 0.0, float(channel.min())
    if kind == "ct":
        low, high = window_hu
        scale = 2.0 / (high - low)
        return low, high, scale, -1.0 - low * scale, -1.0
    inside = channel[body.mask] if body.mask is not None else channel.ravel()
    low, high = (float(v) for v in np.percentile(inside, percentiles))
    if high <= low:  # nearly all of the body has one value; only the extremes differ
        low, high = float(inside.min()), float(inside.max())
    if high <= low:
        low, high = float(channel.min()), float(channel.max())
    if high <= low:  # resampling has left one value
        return low, high, 1.0, -low, 0.0
    clipped = np.clip(inside, low, high).astype(np.float64)
    # A body of one value has no spread; use its distance from the rest as the unit.
    scale = 1.0 / (float(clipped.std()) if clipped.std() > 1e-6 * (high - low) else high - low)
    shift = -float(clipped.mean()) * scale
    air = low if body.mask is None else float(np.clip(np.median(channel[~body.mask]), low, high))
    return low, high, scale, shift, air * scale + shift
