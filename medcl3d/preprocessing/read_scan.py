"""Content checks of images and label maps, after the checks of the bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Collection as Container
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from medcl3d.core.errors import DataError
from medcl3d.io.axes import axes_like, turned, turned_grid
from medcl3d.io.nifti import read_nifti
from medcl3d.io.nifti_header import Header, corner_distance, spacing_warnings

_TOLERANCE = 1e-3  # of a label value: a scale factor or a conversion stays below it, interpolation does not
_MIN_STEPS = 64  # of float32 between the smallest and the largest value of a scan
MANY_CHANNELS = 8  # a longer first axis is taken for planes: the largest sets of sequences have fewer
MANY_CLASSES = 256  # more values in a label map give a warning: the finest atlases in use have fewer

Nonfinite = Literal["error", "zero", "skip"]
Channels = Literal["error", "all", "fourth", "first", "split"]


class SkippedScan(DataError):
    """A scan that the policy excludes; not a fault of the collection."""


@dataclass(frozen=True)
class Volume:
    """A validated volume on its own grid.

    voxels         ``[C, X, Y, Z]``: float32 for an image, int16 for a label
    affine         ``Float64[4, 4]`` voxel index -> RAS+ mm
    num_nonfinite  NaN and infinite voxels that the policy set to zero
    sha256         of the uncompressed file, and of the volume's number if the file has several
                   (`volume_hash`)
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


def read_image(
    path: Path, *, nonfinite: Nonfinite = "error", channels: Channels = "error", volume: int | None = None
) -> Volume:
    """Read and validate an image.

    nonfinite  how to treat NaN and infinity: error, zero (replace and count), or skip the scan
    channels   how to treat a fourth axis: error; channels (`all` refuses a first axis that looks like
               channels, `fourth` does not); `first` volume only; or `split`: only `volume`, or all if that is
               None

    Raises DataError with the fault; `SkippedScan` if the policy excludes the scan.
    """
    header, raw, digest = read_nifti(path) if volume is None else _read_once(path, path.stat().st_mtime_ns)
    count = num_channels(path, raw.shape, channels, volume)
    if raw.ndim == 3 or (channels == "split" and volume is not None):
        raw = raw[None] if raw.ndim == 3 else raw[None, ..., volume]
    else:
        raw = np.moveaxis(raw, -1, 0)[:count]
    voxels, warnings = _scaled(path, raw, header.slope, header.inter), list(header.warnings)
    if has_channels_first(header.shape):
        n = header.shape[0]
        taken = f"the first axis was taken for {n} planes"
        warnings.append(f"channels={channels}: {taken}; if it holds {n} channels, write it last")
    bad = int(voxels.size - np.count_nonzero(np.isfinite(voxels)))
    if bad:
        message = f"{path}: {bad} of {voxels.size} voxels are NaN or infinite"
        if nonfinite == "error":
            raise DataError(problem=message, remedy="repair the file, or set nonfinite to zero or skip")
        if nonfinite == "skip":
            raise SkippedScan(f"{message}; skipped because of nonfinite: skip")
        voxels = np.nan_to_num(voxels, nan=0.0, posinf=0.0, neginf=0.0)
        warnings.append(f"{bad} NaN or infinite voxels set to 0")
    for channel, values in enumerate(voxels):
        if values.min() == values.max():
            problem = f"constant: every voxel of channel {channel} is {values.flat[0]:g}"
            raise DataError(path, problem, "it contains no image")
    return Volume(voxels, header.affine, bad, volume_hash(digest, volume), tuple(warnings))


def volume_hash(file_sha256: str, volume: int | None) -> str:
    """The hash of a file, combined with the number of the volume if the file has several."""
    return file_sha256 if volume is None else hashlib.sha256(f"{file_sha256} {volume}".encode()).hexdigest()


def read_label(path: Path, image: Volume, classes: Container[int] = ()) -> Volume:
    """Read and validate the segmentation of an image.

    classes: the declared classes; empty if none are declared. The label takes the image's affine,
    from which its own may differ by a tenth of a voxel, after its axes are turned to those of the image.

    Raises DataError: same bytes as the image, different grid, non-integer values, undeclared classes.
    """
    header, raw, digest = read_nifti(path)
    if digest == image.sha256:
        problem = "the label is identical to its image, byte for byte"
        raise DataError(path, problem, "name the label map itself")
    shape, affine, expected = raw.shape, header.affine, image.voxels.shape[1:]
    turn = axes_like(affine, image.affine)
    if raw.ndim == 3 and not np.array_equal(turn, [[0, 1], [1, 1], [2, 1]]):
        of_turned, affine_of_turned = turned_grid(shape, affine, turn)
        if of_turned == expected:
            raw, shape, affine = turned(raw, turn), of_turned, affine_of_turned
    if shape != expected:
        problem = f"a label of {_x(shape)} voxels cannot belong to an image of {_x(expected)}"
        raise DataError(path, problem, "pair it with its own image")
    distance = corner_distance(affine, image.affine, expected)
    if distance > 0.1 * image.spacing_mm.min():
        problem = f"the label is up to {distance:.3g} mm from its image, whose shape it has"
        remedy = "write it with its image's affine, or pair it with its own image"
        raise DataError(path, problem, remedy)
    values = _scaled(path, raw, header.slope, header.inter)
    if not np.isfinite(values).all():
        raise DataError(path, "the label contains NaN or infinity")
    found = np.unique(values)
    error = np.abs(found - np.round(found))
    if error.max() > _TOLERANCE:
        wrong = found[error > _TOLERANCE][0]
        raise DataError(path, f"a label needs whole numbers, found {wrong:.9g}", "was it resampled linearly?")
    noise = [f"label values up to {error.max():.1g} from whole numbers were rounded"] if error.any() else []
    values, found = (np.round(values), np.unique(np.round(found))) if noise else (values, found)
    most = np.iinfo(np.int16).max
    if found[0] < 0 or found[-1] > most:
        problem = f"label values from {found[0]:g} to {found[-1]:g}"
        raise DataError(path, problem, f"only 0 to {most} are supported")
    unknown = [int(v) for v in found if classes and int(v) not in classes]
    if unknown:
        raise DataError(path, f"classes {unknown[:10]} are not declared", f"declared are {sorted(classes)}")
    known = {*image.warnings, *spacing_warnings(header.affine)}  # its affine is the image's
    warnings = [*(w for w in header.warnings if w not in known), *noise]
    if found[-1] == 0:
        warnings.append("the label is empty")
    if len(found) > MANY_CLASSES:
        doubt = "is it an image, or one number per object?"
        warnings.append(f"the label has {len(found)} different values: {doubt}")
    return Volume(values.astype(np.int16)[None], image.affine, 0, digest, tuple(warnings))


@lru_cache(maxsize=1)
def _read_once(path: Path, mtime_ns: int) -> tuple[Header, np.ndarray, str]:
    """Keep the last file, since the volumes of one file are read one after the other."""
    return read_nifti(path)


def num_channels(path: Path, shape: tuple[int, ...], channels: Channels, volume: int | None = None) -> int:
    """The number of channels of an image, from the header's shape.

    DataError if `channels` does not allow a fourth axis, or if the first axis looks like the channels.
    """
    if len(shape) == 3:
        return 1
    if has_channels_first(shape) and channels in ("error", "all"):
        looks = f"the first axis looks like {shape[0]} channels, but in NIfTI the fourth axis holds them"
        problem = f"4-D, {_x(shape)}: {looks}, so that {shape[3]} planes would be taken for channels"
        choices = "set channels to split or first if the fourth holds times, to fourth if it holds channels"
        planes = f"if that axis holds {shape[0]} planes, {choices}"
        raise DataError(path, problem, f"write the file with its first axis last ({planes})")
    if channels == "first" or (channels == "split" and volume is not None):
        return 1
    if channels == "error":
        choices = "to first for its first volume, or to split (a time series) for one scan per volume"
        remedy = f"set channels to all if the fourth axis holds channels, {choices}"
        raise DataError(path, f"4-D, {_x(shape)}", remedy)
    return shape[3]


def has_channels_first(shape: tuple[int, ...]) -> bool:
    """Whether the first axis of a 4-D shape looks like channels: short, and shorter than all others."""
    return len(shape) == 4 and shape[0] <= MANY_CHANNELS and shape[0] < min(shape[1:])


def _scaled(path: Path, raw: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """Voxels as float32. DataError if a value exceeds its range, or if float32 cannot resolve the values."""
    if (slope, inter) != (1.0, 0.0):
        raw = raw.astype(np.float64) * slope + inter
    if raw.dtype.itemsize >= 4 and raw.dtype != np.float32:
        finite = raw[np.isfinite(raw)] if raw.dtype.kind == "f" and not np.isfinite(raw).all() else raw
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        largest = max(-low, high)
        if largest > float(np.finfo(np.float32).max):
            raise DataError(path, f"values up to {largest:g} do not fit float32", "rescale the file")
        step = float(np.spacing(np.float32(largest)))
        if high > low and high - low < _MIN_STEPS * step and (raw.dtype.kind == "f" or step > 1):
            far = "are too far from 0 for float32 to distinguish"
            raise DataError(path, f"values from {low:.12g} to {high:.12g} {far}", "subtract their offset")
    return np.ascontiguousarray(raw, dtype=np.float32)


def _x(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
