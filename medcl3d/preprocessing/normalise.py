"""Body segmentation, and normalisation of intensities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medcl3d.preprocessing.body_mask import Body
from medcl3d.preprocessing.intensity_kind import Kind, Levels
from medcl3d.preprocessing.percentiles import percentiles_of


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
    value_range: tuple[float, float] | None = None,
    levels: Sequence[Levels | None] | None = None,
) -> tuple[np.ndarray, Normalisation]:
    """Normalise the intensities of ``Float32[C, X, Y, Z]``.

    levels  `mask_levels` of each channel before resampling; the two values of a mask become 0 and 1

    mri   clip at percentiles of the body, then zero mean and unit standard deviation within it (the grey
          values of MR have no unit: Nyul and Udupa 1999)
    ct    a window in HU to [-1, 1]
    none  unchanged

    With a value_range, the limits of clipping become these values, for ct and mri.
    """
    channels = []
    for channel, of in zip(voxels, levels or [None] * len(voxels), strict=True):
        if of is None:
            limits = _channel(channel, kind, body, percentiles, window_hu)
            channels.append(limits if value_range is None or kind == "none" else _to(value_range, limits))
        else:
            low, high = of
            channels.append((low, high, 1 / (high - low), -low / (high - low), 0.0))
    pairs = zip(voxels, channels, strict=True)
    out = np.stack([np.clip(v, low, high) * scale + shift for v, (low, high, scale, shift, _) in pairs])
    fields = (tuple(map(float, values)) for values in zip(*channels, strict=True))
    return out.astype(np.float32), Normalisation(kind, *fields)


def _to(
    value_range: tuple[float, float], limits: tuple[float, float, float, float, float]
) -> tuple[float, float, float, float, float]:
    """The same clipping, but with the limits mapped to a range."""
    low, high, before, shift_before, fill = limits
    if high <= low:
        return limits
    scale = (value_range[1] - value_range[0]) / (high - low)
    shift = value_range[0] - low * scale
    return low, high, scale, shift, (fill - shift_before) / before * scale + shift


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
    low, high = percentiles_of(inside, percentiles)
    if high <= low:  # nearly all of the body has one value; only the extremes differ
        low, high = float(inside.min()), float(inside.max())
    if high <= low:
        low, high = float(channel.min()), float(channel.max())
    if high <= low:  # resampling has left one value
        return low, high, 1.0, -low, 0.0
    clipped = np.clip(inside, low, high).astype(np.float64)
    # A body of one value has no spread; use its distance from the rest as the unit.
    spread = float(clipped.std())
    scale = 1.0 / (spread if spread > 1e-6 * (high - low) else high - low)
    shift = -float(clipped.mean()) * scale
    outside = None if body.mask is None or body.mask.all() else channel[~body.mask]
    air = low if outside is None else min(max(percentiles_of(outside, (50,))[0], low), high)
    return low, high, scale, shift, air * scale + shift
