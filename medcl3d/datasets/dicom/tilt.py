"""CT with a tilted gantry: the planes are not perpendicular to the step between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from medcl3d.core.errors import DataError
from medcl3d.datasets.dicom.order import LATERAL_TOLERANCE, LPS_TO_RAS, step_of
from medcl3d.datasets.dicom.slices import Slice

Tilt = Literal["error", "resample"]
AIR = -1000.0  # HU


def tilt_of(slices: Sequence[Slice]) -> float:
    """Degrees between the slice step and the normal; 0 if the total shift is below half a pixel."""
    step, normal = step_of(slices), np.cross(*slices[0].orientation)
    along = float(step @ normal)
    sideways = float(np.linalg.norm(step - along * normal))
    if sideways * (len(slices) - 1) <= LATERAL_TOLERANCE * min(slices[0].spacing_mm):
        return 0.0
    return math.degrees(math.atan2(sideways, along))


def refuse_tilted(slices: Sequence[Slice], *, resampled: bool) -> None:
    """DataError if tilted slices are not resampled, or if the modality is not CT."""
    angle = tilt_of(slices)
    if angle and slices[0].header.modality != "CT":
        shift = f"each slice is shifted sideways from the one before ({angle:.1f} degrees)"
        raise DataError(f"{shift}, and only a CT has a gantry tilt")
    if angle and not resampled:
        remedy = "set tilt=resample, or resample the series upright"
        raise DataError("", f"the gantry is tilted ({angle:.1f} degrees)", remedy)


def upright(voxels: np.ndarray, slices: Sequence[Slice]) -> tuple[np.ndarray, np.ndarray]:
    """Tilted slices on an orthogonal grid that contains all of them, filled with air outside.

    voxels  ``Float32[X, Y, Z]`` of the slices in order, HU

    Returns ``Float32[X', Y', Z]`` and its affine to RAS+ mm. Each slice is shifted within its plane by linear
    interpolation.
    """
    first, step = slices[0], step_of(slices)
    normal = np.cross(*first.orientation)
    # Of each slice, in columns and rows.
    moves = np.outer(np.arange(len(slices)), first.orientation @ step / first.spacing_mm)
    start = np.floor(moves.min(axis=0))
    moves = moves - start
    size = np.array(voxels.shape[:2]) + np.ceil(moves.max(axis=0)).astype(int)
    made = np.empty((*size, len(slices)), dtype=np.float32, order="F")
    for number, (along, down) in enumerate(moves.tolist()):
        plane = _shifted(voxels[..., number], along, int(size[0]))
        made[..., number] = _shifted(plane.T, down, int(size[1])).T
    affine = np.eye(4)
    affine[:3, :2] = (first.orientation * np.array(first.spacing_mm)[:, None]).T
    affine[:3, 2] = normal * (step @ normal)
    affine[:3, 3] = first.position + affine[:3, :2] @ start
    return made, LPS_TO_RAS @ affine


def _shifted(plane: np.ndarray, by: float, size: int) -> np.ndarray:
    """A plane shifted along its first axis, which grows to `size`, by a number of voxels or a fraction."""
    whole = math.floor(by)
    share = by - whole
    near = np.full((size, plane.shape[1]), AIR)
    near[whole : whole + len(plane)] = plane
    if not share:
        return near
    far = np.full_like(near, AIR)
    far[whole + 1 : whole + 1 + len(plane)] = plane
    return (1 - share) * near + share * far
