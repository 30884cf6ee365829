"""Every file is what it says: content checks on top of the byte level, for images and for labels."""

from __future__ import annotations

import hashlib
from collections.abc import Collection as Container
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from medcl3d.data.nifti import read_nifti
from medcl3d.data.nifti_header import Header, corner_distance, doubts_of_spacing
from medcl3d.errors import DataError

_HAIR = 1e-3  # of a label from a whole number: what a scale factor or a conversion leaves, and no interpolation
_FEWEST_STEPS = 64  # that float32 must leave between the least and the largest value of a scan

Nonfinite = Literal["error", "zero", "skip"]
Channels = Literal["error", "all", "fourth", "first", "split"]


class SkippedScan(DataError):
    """The policy says to leave this scan out; that is no fault of the collection."""


MANY_CHANNELS = 8
"""Channels beyond which a first axis is taken for planes: the largest sets of sequences in use have fewer."""

MANY_CLASSES = 256
"""Values of a label map beyond which it is asked whether it is one: the finest atlases in use have fewer."""


@dataclass(frozen=True)
class Volume:
    """A volume that has been found good, still on its own grid.

    voxels         ``[C, X, Y, Z]``: float32 for an image, int16 for a label
    affine         ``Float64[4, 4]`` voxel index -> RAS+ mm
    num_nonfinite  NaN and infinite voxels that the policy set to zero
    sha256         of the uncompressed file, and of which volume of it where there are several (`hash_of`)
    """

    voxels: np.ndarray
    affine: np.ndarray
    num_nonfinite: int
    sha256: str
    warnings: tuple[str, ...]

    @property
    def spacing_mm(self) -> np.ndarray:
        """``Float64[3]`` mm per voxel."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


def read_image(path: Path, *, nonfinite: Nonfinite = "error", channels: Channels = "error", volume: int | None = None) -> Volume:
    """Read an image and refuse what is not one.

    nonfinite  what NaN and infinity mean: a fault, zeros (counted), or a scan to leave out
    channels   what a fourth axis means: a fault, channels (`all` refuses a first axis that looks like them, `fourth` does not), only
               its first volume, or (split) `volume`, all of them if none is named

    Raises DataError with what is wrong; `SkippedScan` where the policy leaves the scan out.
    """
    header, raw, digest = read_nifti(path) if volume is None else _read_once(path, path.stat().st_mtime_ns)
    raw = _with_channels(path, raw, channels, volume)
    voxels, warnings = _scaled(path, raw, header.slope, header.inter), list(header.warnings)
    if has_channels_first(header.shape):
        n = header.shape[0]
        warnings.append(f"the first axis was taken for {n} planes, as channels={channels} has it; if it holds {n} channels, write it last")
    bad = int(voxels.size - np.count_nonzero(np.isfinite(voxels)))
    if bad:
        message = f"{path}: {bad} of {voxels.size} voxels are NaN or infinite"
        if nonfinite == "error":
            raise DataError(f"{message}; repair the file, or set nonfinite to zero or skip")
        if nonfinite == "skip":
            raise SkippedScan(f"{message}; left out, as nonfinite: skip says")
        voxels = np.nan_to_num(voxels, nan=0.0, posinf=0.0, neginf=0.0)
        warnings.append(f"{bad} NaN or infinite voxels set to 0")
    for channel, values in enumerate(voxels):
        if values.min() == values.max():
            raise DataError(f"{path}: constant: every voxel of channel {channel} is {values.flat[0]:g}; it holds no picture")
    return Volume(voxels, header.affine, bad, hash_of(digest, volume), tuple(warnings))


def hash_of(file_sha256: str, volume: int | None) -> str:
    """What a volume of a file is known by: the hash of the file, and with it the volume's number where it is one of several."""
    return file_sha256 if volume is None else hashlib.sha256(f"{file_sha256} {volume}".encode()).hexdigest()


def read_label(path: Path, image: Volume, classes: Container[int] = ()) -> Volume:
    """Read the segmentation of an image and refuse one that cannot be its own.

    classes: the declared classes; empty where none were declared. The label takes the image's affine,
    from which it may differ by a tenth of a voxel.

    Raises DataError: the image itself, another grid, values that are no integers, undeclared classes.
    """
    header, raw, digest = read_nifti(path)
    if digest == image.sha256:
        raise DataError(f"{path}: the label holds what its image holds, byte for byte; name the label map itself")
    shape, own = raw.shape, image.voxels.shape[1:]
    if shape != own:
        raise DataError(f"{path}: a label of {_x(shape)} voxels cannot belong to an image of {_x(own)}; pair it with its own image")
    distance = corner_distance(header.affine, image.affine, own)
    if distance > 0.1 * image.spacing_mm.min():
        raise DataError(
            f"{path}: the label lies up to {distance:.3g} mm from its image, whose voxels it has; "
            "write it with its image's affine, or pair it with its own image"
        )
    values = _scaled(path, raw, header.slope, header.inter)
    if not np.isfinite(values).all():
        raise DataError(f"{path}: the label holds NaN or infinity")
    found = np.unique(values)
    away = np.abs(found - np.round(found))
    if away.max() > _HAIR:
        raise DataError(f"{path}: a label needs whole numbers, found {found[away > _HAIR][0]:.9g}; was it resampled linearly?")
    noise = [f"label values up to {away.max():.1g} beside whole numbers were rounded"] if away.any() else []
    values, found = (np.round(values), np.unique(np.round(found))) if noise else (values, found)
    if found[0] < 0 or found[-1] > np.iinfo(np.int16).max:
        raise DataError(f"{path}: label values {found[0]:g} to {found[-1]:g}; 0 to {np.iinfo(np.int16).max} are possible")
    unknown = [int(v) for v in found if classes and int(v) not in classes]
    if unknown:
        raise DataError(f"{path}: classes {unknown[:10]} are not declared; declared are {sorted(classes)}")
    known = {*image.warnings, *doubts_of_spacing(header.affine)}  # its affine is the image's
    warnings = [*(w for w in header.warnings if w not in known), *noise, *(["the label is empty"] if found[-1] == 0 else [])]
    if len(found) > MANY_CLASSES:
        warnings.append(f"the label holds {len(found)} different values: an image, or a number for each object?")
    return Volume(values.astype(np.int16)[None], image.affine, 0, digest, tuple(warnings))


def verify(path: Path, *, nonfinite: Nonfinite = "error", channels: Channels = "error") -> DataError | None:
    """What is wrong with an image file, or None."""
    try:
        read_image(path, nonfinite=nonfinite, channels=channels)
    except DataError as error:
        return error
    return None


@lru_cache(maxsize=1)
def _read_once(path: Path, mtime_ns: int) -> tuple[Header, np.ndarray, str]:
    """A file of several volumes, which are asked for one after the other: kept until the next one."""
    return read_nifti(path)


def num_channels(path: Path, shape: tuple[int, ...], channels: Channels, volume: int | None = None) -> int:
    """How many channels an image of a file has, by the header's shape. DataError if a fourth axis is a fault, or is not the channels'."""
    if len(shape) == 3:
        return 1
    if has_channels_first(shape) and channels in ("error", "all"):
        raise DataError(
            f"{path}: 4-D, {_x(shape)}: the first axis looks like {shape[0]} channels, and in NIfTI the fourth holds them, so that "
            f"{shape[3]} planes would be taken for channels; write the file with its first axis last (if that axis holds {shape[0]} "
            "planes, set channels to split or first if the fourth holds times, to fourth if it holds channels)"
        )
    if channels == "first" or (channels == "split" and volume is not None):
        return 1
    if channels == "error":
        raise DataError(
            f"{path}: 4-D, {_x(shape)}: set channels to all where the fourth axis holds channels, "
            "to first for its first volume, or to split (a time series) for one scan a volume"
        )
    return shape[3]


def has_channels_first(shape: tuple[int, ...]) -> bool:
    """Whether a fourth axis seems to be a plane's and the first one the channels': the first is short, and shorter than all others."""
    return len(shape) == 4 and shape[0] <= MANY_CHANNELS and shape[0] < min(shape[1:])


def _with_channels(path: Path, raw: np.ndarray, channels: Channels, volume: int | None) -> np.ndarray:
    count = num_channels(path, raw.shape, channels, volume)
    if raw.ndim == 3:
        return raw[None]
    if channels == "split" and volume is not None:
        return raw[None, ..., volume]
    return np.moveaxis(raw, -1, 0)[:count]


def _scaled(path: Path, raw: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """Voxels as float32. DataError where a value is beyond its range and would become infinite, or where it leaves no picture."""
    if (slope, inter) != (1.0, 0.0):
        raw = raw.astype(np.float64) * slope + inter
    if raw.dtype.itemsize >= 4 and raw.dtype != np.float32:
        finite = raw[np.isfinite(raw)] if raw.dtype.kind == "f" and not np.isfinite(raw).all() else raw
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        largest = max(-low, high)
        if largest > float(np.finfo(np.float32).max):
            raise DataError(f"{path}: values up to {largest:g} do not fit float32; rescale the file")
        step = float(np.spacing(np.float32(largest)))
        if high > low and high - low < _FEWEST_STEPS * step and (raw.dtype.kind == "f" or step > 1):
            raise DataError(
                f"{path}: values from {low:.12g} to {high:.12g} are too far from 0 for float32 to tell them apart; subtract their offset"
            )
    return np.ascontiguousarray(raw, dtype=np.float32)


def _x(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
