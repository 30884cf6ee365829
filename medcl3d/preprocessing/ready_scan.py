"""A scan read, validated, resampled, cropped and normalised in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from medcl3d.core.errors import DataError
from medcl3d.io.nifti_header import spacing_warnings
from medcl3d.preprocessing.body_mask import Body, find_body
from medcl3d.preprocessing.intensity_kind import kind_warnings, label_warnings, mask_levels
from medcl3d.preprocessing.normalise import Normalisation, normalise
from medcl3d.preprocessing.read_scan import Volume, read_image
from medcl3d.preprocessing.resample import at_spacing, refuse_too_large, respaced, to_ras
from medcl3d.preprocessing.scan_task import ScanTask
from medcl3d.store.content_hashes import hash_voxels
from medcl3d.store.quantise import Scaling, pack, unpack


@dataclass(frozen=True)
class ReadyScan:
    """A scan in the form of the store.

    image          the volume of the file, on its own grid
    own_affine     ``Float64[4, 4]`` index of that grid -> RAS+ mm, with the assumed voxel size, if any
    voxels_sha256  `hash_voxels` of the reoriented volume
    stored         ``[C, D, H, W]`` reoriented, resampled, cropped, normalised and packed; `voxels` unpacks
                   them
    affine         ``Float64[4, 4]`` index of `stored` -> RAS+ mm
    window         the part of the reoriented and resampled volume that is stored
    """

    image: Volume
    own_affine: np.ndarray
    voxels_sha256: str
    stored: np.ndarray
    scaling: Scaling
    affine: np.ndarray
    window: tuple[slice, slice, slice]
    body: Body
    normalisation: Normalisation
    warnings: tuple[str, ...]

    @property
    def voxels(self) -> np.ndarray:
        """``Float32[C, D, H, W]``, the input of a network."""
        return unpack(self.stored, self.scaling)


def ready_scan(task: ScanTask) -> ReadyScan:
    """Validate one scan and convert it to the form of the store, without writing it.

    DataError, SkippedScan.
    """
    image = read_image(task.image, nonfinite=task.nonfinite, channels=task.channels, volume=task.volume)
    own_affine = image.affine if task.assume_spacing_mm is None else respaced(image, task.assume_spacing_mm)
    if task.spacing_mm is not None:
        refuse_too_large(task.image, image.voxels.shape, own_affine, task.spacing_mm)
    voxels, affine = to_ras(replace(image, affine=own_affine))
    voxels_sha256 = hash_voxels(voxels)
    voxels, affine = at_spacing(voxels, affine, task.spacing_mm)
    levels = [mask_levels(channel, task.kind) for channel in image.voxels]
    body = find_body(voxels, "none" if all(levels) else task.kind)
    window = (slice(None), slice(None), slice(None))
    if task.crop == "body":
        voxels, affine, body, window = _cropped(voxels, affine, body)
    voxels, normalisation = normalise(
        voxels,
        task.kind,
        body,
        percentiles=task.percentiles,
        window_hu=task.window_hu,
        value_range=task.value_range,
        levels=levels,
    )
    remedy = "use store_as=int16" + (" or intensity=mri" if task.kind == "none" else "")
    stored, scaling = pack(voxels, task.store_as, task.image, remedy)
    _refuse_constant(task, stored)
    warnings = list(image.warnings)
    if task.assume_spacing_mm is not None:  # warnings of another voxel size are settled
        settled = spacing_warnings(image.affine)
        warnings = [warning for warning in warnings if warning not in settled] + spacing_warnings(own_affine)
    warnings += kind_warnings(image.voxels, task.kind)
    if task.kind != "none":  # unchanged values may be shapes
        warnings += label_warnings(image.voxels)
    is_whole = task.store_as == "float16" and np.array_equal(np.round(voxels), voxels)
    if is_whole and not np.array_equal(stored, voxels):
        warnings.append("whole numbers were rounded by float16; store_as int16 keeps them")
    return ReadyScan(
        image=image,
        own_affine=own_affine,
        voxels_sha256=voxels_sha256,
        stored=stored,
        scaling=scaling,
        affine=affine,
        window=window,
        body=body,
        normalisation=normalisation,
        warnings=tuple(warnings),
    )


def _refuse_constant(task: ScanTask, stored: np.ndarray) -> None:
    """DataError if a channel of ``[C, D, H, W]`` became constant in preparation."""
    bits = stored.reshape(len(stored), -1).view(np.uint16)
    for channel in np.flatnonzero((bits == bits[:, :1]).all(axis=1)):
        what = f"{task.image}: no image is left: every voxel of channel {channel} has the same value"
        if task.kind == "ct":
            low, high = task.window_hu
            remedy = "set window_hu, or intensity if this is not CT in HU"
            raise DataError("", f"{what} in the window from {low:g} to {high:g} HU", remedy)
        size = "x".join(map(str, stored.shape[1:]))
        finer = ["a finer spacing_mm"] if task.spacing_mm is not None else []
        finer += ["store_as=int16"] if task.store_as == "float16" else []
        remedy = f"try {' or '.join(finer)}" if finer else "leave the scan out"
        raise DataError("", f"{what} in {size} voxels as {task.store_as}", remedy)


def _cropped(
    voxels: np.ndarray, affine: np.ndarray, body: Body
) -> tuple[np.ndarray, np.ndarray, Body, tuple[slice, slice, slice]]:
    """Crop voxels, affine and body mask to the body's box; also returns the box as slices."""
    start, stop = body.box
    d, h, w = (slice(a, b) for a, b in zip(start, stop, strict=True))
    moved = affine.copy()
    moved[:3, 3] = affine[:3, :3] @ np.array(start) + affine[:3, 3]
    size = tuple(b - a for a, b in zip(start, stop, strict=True))
    mask = None if body.mask is None else body.mask[d, h, w]
    inside = Body(((0, 0, 0), size), body.method, mask)
    return np.ascontiguousarray(voxels[:, d, h, w]), moved, inside, (d, h, w)
