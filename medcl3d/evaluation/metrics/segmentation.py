"""Dice, surface distances and volume error of a scan, and means over test patients with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

SURFACE_TOLERANCE_MM = 2.0
"""Tolerance of the surface Dice; part of the name of the measure."""
MM3_PER_ML = 1000.0


@dataclass(frozen=True)
class Overlap:
    """Agreement of prediction and truth for one structure of one scan; all NaN if it is absent in both.

    nsd_2mm          normalised surface Dice: the fraction of both surfaces within 2 mm of the other
    volume_error_ml  the absolute difference of the two volumes
    """

    dice: float
    hd95_mm: float
    nsd_2mm: float
    volume_error_ml: float


def overlap_of(prediction: np.ndarray, truth: np.ndarray, to_mm: Sequence[float] | np.ndarray) -> Overlap:
    """Dice, surface distances in mm and volume error of two masks ``Bool[D, H, W]``.

    to_mm: mm per voxel ``[3]``, or the matrix ``[3, 3]`` from voxels to mm, which may be sheared.

    The distance is the larger of the two directed 95th percentiles between surface voxels. A structure in
    only one of the masks (missed, or falsely predicted) has Dice and surface Dice 0. Its distance is
    undefined and set to the longest diagonal of the image, a finite worst case, so that a method cannot gain
    by predicting nothing. ValueError if the shapes differ. Source: Dice 1945; Huttenlocher et al. 1993;
    Nikolov et al. 2021 for the surface Dice (here of surface voxels, not of areas).
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    predicted, present = bool(prediction.any()), bool(truth.any())
    if not predicted and not present:
        return Overlap(*[float("nan")] * 4)
    matrix = np.asarray(to_mm, dtype=np.float64)
    matrix = np.diag(matrix) if matrix.ndim == 1 else matrix
    voxel_ml = abs(float(np.linalg.det(matrix))) / MM3_PER_ML
    volume_error = abs(int(prediction.sum()) - int(truth.sum())) * voxel_ml
    if not predicted or not present:
        diagonals = matrix @ (np.array([[1, 1, 1], [-1, 1, 1], [1, -1, 1], [1, 1, -1]]) * truth.shape).T
        return Overlap(0.0, float(np.linalg.norm(diagonals, axis=0).max()), 0.0, volume_error)
    either = prediction | truth
    spans = [
        np.flatnonzero(either.any(axis=tuple(a for a in range(3) if a != axis)))[[0, -1]] for axis in range(3)
    ]
    box = tuple(slice(first, last + 1) for first, last in spans)
    prediction, truth = prediction[box], truth[box]
    dice = 2 * int((prediction & truth).sum()) / (int(prediction.sum()) + int(truth.sum()))
    surfaces = [np.argwhere(mask & ~ndimage.binary_erosion(mask)) @ matrix.T for mask in (prediction, truth)]
    directed = [
        cKDTree(other).query(one)[0].astype(np.float32)  # 2 mm, up to rounding of places, is within 2 mm
        for one, other in (surfaces, surfaces[::-1])
    ]
    distance = max(float(np.quantile(distances, 0.95)) for distances in directed)
    near = float((np.concatenate(directed) <= SURFACE_TOLERANCE_MM).mean())
    return Overlap(dice, distance, near, volume_error)
