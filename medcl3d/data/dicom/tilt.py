"""A CT whose gantry was tilted: its planes are no right angle to the way from one to the next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from medcl3d.data.dicom.order import LATERAL_TOLERANCE, LPS_TO_RAS, step_of
from medcl3d.data.dicom.slices import Slice
from medcl3d.errors import DataError

Tilt = Literal["error", "resample"]
AIR = -1000.0  # HU


def tilt_of(slices: Sequence[Slice]) -> float:
    """Degrees between the way from slice to slice and their normal, 0 where all in all they move less than half a pixel sideways."""
    step, normal = step_of(slices), np.cross(*slices[0].orientation)
    along = float(step @ normal)
    sideways = float(np.linalg.norm(step - along * normal))
    if sideways * (len(slices) - 1) <= LATERAL_TOLERANCE * min(slices[0].spacing_mm):
        return 0.0
    return math.degrees(math.atan2(sideways, along))


def refuse_tilted(slices: Sequence[Slice], *, resampled: bool) -> None:
    """DataError where slices are tilted and are not to be resampled, or where no gantry tilts."""
    angle = tilt_of(slices)
    if angle and slices[0].header.modality != "CT":
        raise DataError(f"each slice lies sideways of the one before ({angle:.1f} degrees), and this is no CT, whose gantry tilts")
    if angle and not resampled:
        raise DataError(f"the gantry is tilted ({angle:.1f} degrees); set tilt=resample, or resample the series upright yourself")


def upright(voxels: np.ndarray, slices: Sequence[Slice]) -> tuple[np.ndarray, np.ndarray]:
    """Tilted slices on a grid of right angles that holds them all, air where none of them was.

    voxels  ``Float32[X, Y, Z]`` of the slices in order, HU

    Returns ``Float32[X', Y', Z]`` and its affine to RAS+ mm. Each slice stays in its plane and is moved there, with linear interpolation.
    """
    first, step = slices[0], step_of(slices)
    normal = np.cross(*first.orientation)
    moves = np.outer(np.arange(len(slices)), first.orientation @ step / first.spacing_mm)  # of each slice, in columns and rows
    start = np.floor(moves.min(axis=0))
    moves = moves - start
    size = np.array(voxels.shape[:2]) + np.ceil(moves.max(axis=0)).astype(int)
    made = np.empty((*size, len(slices)), dtype=np.float32, order="F")
    for number, (along, down) in enumerate(moves.tolist()):
        plane = _moved(voxels[..., number], along, int(size[0]))
        made[..., number] = _moved(plane.T, down, int(size[1])).T
    affine = np.eye(4)
    affine[:3, :2] = (first.orientation * np.array(first.spacing_mm)[:, None]).T
    affine[:3, 2] = normal * (step @ normal)
    affine[:3, 3] = first.position + affine[:3, :2] @ start
    return made, LPS_TO_RAS @ affine


def _moved(plane: np.ndarray, by: float, size: int) -> np.ndarray:
    """A plane moved along its first axis, which grows to `size`, by a number of voxels that need not be whole."""
    whole = math.floor(by)
    share = by - whole
    near = np.full((size, plane.shape[1]), AIR)
    near[whole : whole + len(plane)] = plane
    if not share:
        return near
    far = np.full_like(near, AIR)
    far[whole + 1 : whole + 1 + len(plane)] = plane
    return (1 - share) * near + share * far
