"""Kinds of intensity, by modality and by the values of a scan."""

from __future__ import annotations

import re
from typing import Literal

import numpy as np

Kind = Literal["mri", "ct", "none"]
# Modality names of CT: CT, CTA, CTP, CE-CT, cbct, ct_abdomen, ...; not OCT, and not PET/CT, which is
# ambiguous.
_CT = re.compile(r"(?<![a-z])(?:ce|nc|cb|ld|hr)?ct[ap]?(?![a-z0-9])", re.IGNORECASE)
_PET = re.compile(r"pet|(?<![a-z])pt(?![a-z])", re.IGNORECASE)
_SHAPE = "shape"  # the modality of scans that are masks
_STRIDE = 7  # between the voxels that are examined
_FEW_VALUES = 20


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
    # A few voxels suffice to exclude most scans.
    for values in (channel.reshape(-1)[:: 64 * _STRIDE], channel):
        if not ((values == low) | (values == high)).all():
            return None
    return low, high


def kind_warnings(voxels: np.ndarray, kind: Kind) -> list[str]:
    """A warning if ``Float32[C, X, Y, Z]`` as MR looks like HU, as CT does not, or has only two values."""
    if any(mask_levels(channel, kind) for channel in voxels):
        two = f"{voxels.min():g} and {voxels.max():g}"
        return [f"only two values, {two}: it is a mask, and stored as 0 and 1"]
    values = voxels.reshape(-1)[::_STRIDE]
    low, median, high = (float(v) for v in np.percentile(values, (0.5, 50, 99.5)))
    of_values = f"values from {low:.4g} to {high:.4g}"
    # HU: air -1000, outside the scanner's circle down to -3024, fat and water about 0, bone and metal above.
    if kind == "mri" and -3100 <= low <= -800 and 50 <= high <= 5000:
        remedy = "name the modality CT, or prepare with intensity=ct"
        return [f"{of_values} look like CT in HU but are treated as MR; {remedy}"]
    if kind == "ct" and (values.min() >= 0 or high - low < 30 or not -1100 <= median <= 3100):
        doubt = "are slope and intercept lost? set intensity if this is not CT"
        return [f"{of_values} do not look like HU (air -1000, water 0): {doubt}"]
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
    whole = f"contains only {len(found)} whole numbers, {found[0]:g} to {found[-1]:g}"
    remedy = "name label maps in a table, or use source=folder with label="
    return [f"{whole}: a label map or a shape, not an image; {remedy}"]
