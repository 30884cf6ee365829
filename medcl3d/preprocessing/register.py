"""Affine registration of a scan to a reference scan, by mutual information."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk

from medcl3d.core.errors import DataError

GRID_MM = 4.0
SAMPLED, BINS, SEED = 0.3, 32, 1
LEARNING_RATE_MM, MIN_STEP_MM, ITERATIONS, RELAXATION = 2.0, 0.01, 100, 0.6
SCALES = (0.6, 1.7)  # singular values of a plausible affine between two bodies


@dataclass(frozen=True)
class Registration:
    """An affine between the world mm (RAS+) of two scans.

    matrix      ``Float64[4, 4]`` world mm of the scan -> world mm of the reference
    similarity  mutual information in nats
    before      mutual information of the start
    """

    matrix: np.ndarray
    similarity: float
    before: float


@contextmanager
def _one_thread() -> Iterator[None]:
    """ITK in one thread, since sums over threads have no fixed order."""
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


@_one_thread()
def register(
    moving: np.ndarray,
    moving_affine: np.ndarray,
    fixed: np.ndarray,
    fixed_affine: np.ndarray,
    start: np.ndarray,
) -> Registration:
    """Register a scan ``Float32[D, H, W]`` to a reference of the same kind of shape.

    moving_affine, fixed_affine  ``Float64[4, 4]`` voxel -> world mm
    start                        ``Float64[4, 4]`` world mm of the scan -> world mm of the reference

    Runs on a grid of about 4 mm, from coarse to fine, in one thread and with fixed random draws, so that the
    result is the same each time. DataError if the result is not plausible, or no better than the start.
    Source: Mattes et al., TMI 2003, as in SimpleITK.
    """
    reference, reference_to_world = _image(fixed, fixed_affine)
    image, image_to_world = _image(moving, moving_affine)
    # ITK's transforms map points of the reference to points of the scan.
    inverse = np.linalg.inv(image_to_world) @ np.linalg.inv(start) @ reference_to_world
    found = _transform(reference, inverse)
    method = _method(found)
    method.SetOptimizerAsRegularStepGradientDescent(LEARNING_RATE_MM, MIN_STEP_MM, ITERATIONS, RELAXATION)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([1, 0])
    try:
        before = -method.MetricEvaluate(reference, image)
        method.Execute(reference, image)  # changes `found`
        similarity = -_method(found).MetricEvaluate(reference, image)
    except RuntimeError as error:  # a constant image, or nearly all samples outside the scan
        raise DataError(f"the registration failed: {str(error).strip().splitlines()[-1]}") from None
    matrix = reference_to_world @ np.linalg.inv(_matrix(found)) @ np.linalg.inv(image_to_world)
    scales = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    if not SCALES[0] <= scales.min() <= scales.max() <= SCALES[1]:
        found_scales = f"{scales.min():.2f} to {scales.max():.2f}"
        raise DataError(f"the registration scales by {found_scales}, outside {SCALES[0]} to {SCALES[1]}")
    if not similarity > before:
        raise DataError(f"the registration lowers mutual information, from {before:.3f} to {similarity:.3f}")
    return Registration(matrix, similarity, before)


def _image(volume: np.ndarray, affine: np.ndarray) -> tuple[Any, np.ndarray]:
    """An image in mm along its own axes (ITK has no sheared ones) at about 4 mm, and those mm -> world mm."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.transpose(2, 1, 0), dtype=np.float32))
    image.SetSpacing(spacing.tolist())
    shrink = [max(1, round(GRID_MM / mm)) for mm in spacing]
    sigmas = [max(1.0, n / 2) * mm for n, mm in zip(shrink, spacing, strict=True)]
    image = sitk.Shrink(sitk.DiscreteGaussian(image, [sigma**2 for sigma in sigmas]), shrink)
    return image, affine @ np.diag([*(1 / spacing), 1.0])


def _method(transform: Any) -> Any:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(SAMPLED, SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetInitialTransform(transform, inPlace=True)
    return method


def _transform(reference: Any, matrix: np.ndarray) -> Any:
    """The affine ``Float64[4, 4]`` as ITK's, about the middle of the reference."""
    middle = [(n - 1) / 2 for n in reference.GetSize()]
    centre = np.array(reference.TransformContinuousIndexToPhysicalPoint(middle))
    transform = sitk.AffineTransform(3)
    transform.SetCenter(centre.tolist())
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetTranslation((matrix[:3, 3] - centre + matrix[:3, :3] @ centre).tolist())
    return transform


def _matrix(transform: Any) -> np.ndarray:
    centre, matrix = np.array(transform.GetCenter()), np.eye(4)
    matrix[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    matrix[:3, 3] = np.array(transform.GetTranslation()) + centre - matrix[:3, :3] @ centre
    return matrix
