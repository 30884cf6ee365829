"""Dice, surface distances and volume error of a scan, and means over test patients with intervals."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice
from numpy.typing import ArrayLike
from scipy import ndimage, stats
from scipy.spatial import cKDTree

from medcl3d.evaluation.statistics.intervals import Interval

SURFACE_TOLERANCE_MM = 2.0
"""Tolerance of the surface Dice; part of the name of the measure."""
MM3_PER_ML = 1000.0
ORTHOGONAL = 0.01  # a scan is sheared if the cosine of two axes is larger, as in the validation of headers


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
    Nikolov et al. 2021 for the surface Dice (here of surface voxels, not of areas); MONAI's implementations.
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
    spans = [np.flatnonzero(either.any(axis=tuple(a for a in range(3) if a != axis)))[[0, -1]] for axis in range(3)]
    box = tuple(slice(first, last + 1) for first, last in spans)
    y_pred, y = (torch.from_numpy(np.ascontiguousarray(mask[box]))[None, None].float() for mask in (prediction, truth))
    dice = compute_dice(y_pred, y, include_background=True, ignore_empty=False)
    axes = matrix / np.linalg.norm(matrix, axis=0)
    spacing = np.linalg.norm(matrix, axis=0).tolist()
    cosines = axes.T @ axes
    if np.abs(cosines - np.eye(3)).max() > ORTHOGONAL:
        return Overlap(float(dice), *_of_sheared_surfaces(prediction[box], truth[box], matrix), volume_error)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # MONAI 1.6 warns about an argument that it passes itself
        distance = compute_hausdorff_distance(y_pred, y, include_background=True, percentile=95, spacing=spacing)
        near = compute_surface_dice(y_pred, y, [SURFACE_TOLERANCE_MM], include_background=True, spacing=spacing)
    return Overlap(float(dice), float(distance), float(near), volume_error)


def _of_sheared_surfaces(prediction: np.ndarray, truth: np.ndarray, to_mm: np.ndarray) -> tuple[float, float]:
    """HD95 in mm and surface Dice at 2 mm, between surface voxels in mm."""
    surfaces = [np.argwhere(mask & ~ndimage.binary_erosion(mask)) @ to_mm.T for mask in (prediction, truth)]
    directed = [cKDTree(other).query(one)[0] for one, other in (surfaces, surfaces[::-1])]
    near = float((np.concatenate(directed) <= SURFACE_TOLERANCE_MM).mean())
    return float(max(np.quantile(distance, 0.95) for distance in directed)), near


def over_patients(values: ArrayLike, patients: Sequence[str], seed: int) -> Interval | None:
    """Mean over patients ``[n]`` with its 95% bootstrap interval; patients have equal weight.

    Values are averaged within patients, and patients are resampled (bias-corrected and accelerated if
    defined, Efron 1987). NaN is dropped; None if nothing remains. With one patient, the limits are NaN. `n`
    is the number of patients. The interval includes the variation between test patients, not between runs.
    """
    array, names = np.asarray(values, dtype=np.float64), np.asarray(patients)
    known = ~np.isnan(array)
    if not known.any():
        return None
    means = np.array([array[known & (names == name)].mean() for name in sorted(set(names[known].tolist()))])
    mean = float(means.mean())
    if len(means) == 1:
        return Interval(mean, float("nan"), float("nan"), 1)
    if np.ptp(means) == 0:
        return Interval(mean, mean, mean, len(means))
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # BCa may be undefined; the next method is defined
            result = stats.bootstrap((means,), np.mean, method=method, random_state=np.random.default_rng(seed))
        low, high = (float(v) for v in result.confidence_interval)
        if np.isfinite([low, high]).all():
            break
    return Interval(mean, low, high, len(means))


def summary(cases: Sequence[Mapping[str, object]], names: Sequence[str], seed: int) -> dict[str, Interval]:
    """Means over patients of each measure in `names`, over all classes and per class (``dice/liver``).

    cases  one row per scan and class, with scan, patient, class and the measures (None if undefined)

    Classes are first averaged within a scan, so that scans have equal weight, whatever their number of
    structures.
    """

    def numbers(rows: Sequence[Mapping[str, object]], name: str) -> np.ndarray:
        return np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=np.float64)

    found: dict[str, Interval | None] = {}
    scans = {str(row["scan"]): str(row["patient"]) for row in cases}
    for name in names:
        of_scan = {scan: numbers([row for row in cases if row["scan"] == scan], name) for scan in scans}
        means = [float(np.nanmean(v)) if (~np.isnan(v)).any() else float("nan") for v in of_scan.values()]
        found[name] = over_patients(means, list(scans.values()), seed)
    for name in names:
        for label in dict.fromkeys(str(row["class"]) for row in cases):
            rows = [row for row in cases if row["class"] == label]
            found[f"{name}/{label}"] = over_patients(numbers(rows, name), [str(row["patient"]) for row in rows], seed)
    return {name: interval for name, interval in found.items() if interval is not None}
