"""View recipes: the choices of a configuration under `views`.

A recipe draws the parameters of one view from that view's own generator, and applies the parameters of a
batch at once on the device, so that a view is the same in any batch, on any rank and in any worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float64, Shaped
from pydantic import AfterValidator, Field
from torch import Tensor

from medcl3d.config.field_types import Fraction, NonNegative
from medcl3d.core.geometry import Triple
from medcl3d.views import VIEWS
from medcl3d.views.intensity import Intensity
from medcl3d.views.spatial import Interval, Spatial, voxel_map, warp

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
Flips = tuple[Fraction, Fraction, Fraction]
Degrees = Annotated[float, Field(ge=0, le=180, allow_inf_nan=False)]
Lean = Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)]


def _fractions(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[1] > 1:
        raise ValueError("a fraction of an axis is at most 1")
    return interval


Fractions = Annotated[Interval, AfterValidator(_fractions)]


@dataclass(frozen=True)
class ViewResult:
    """Views made of crops.

    voxels      ``Float[N, C, D, H, W]``
    voxel_map   ``Float64[N, 4, 4]`` from view voxel index to crop voxel index, on the CPU
    labels      ``[N, D, H, W]`` if labels were given
    """

    voxels: Float[Tensor, "N C D H W"]
    voxel_map: Float64[Tensor, "N 4 4"]
    labels: Shaped[Tensor, "N D H W"] | None = None


@dataclass(frozen=True)
class Recipe:
    """Spatial augmentation, then intensity augmentation. Either may be left out."""

    spatial: Spatial | None = None
    intensity: Intensity | None = None

    @property
    def flip_probability(self) -> tuple[float, float, float]:
        """The probability of a flip of each axis."""
        return self.spatial.flip_probability if self.spatial else (0.0, 0.0, 0.0)

    def draw(self, rng: np.random.Generator, shape: Triple) -> dict[str, np.ndarray]:
        """Draw the parameters of a view of `shape` voxels, with fixed keys and shapes so that they stack."""
        drawn: dict[str, np.ndarray] = (
            {} if self.intensity or self.spatial else {"seed": np.zeros((), dtype=np.int64)}
        )
        if self.spatial:
            drawn |= self.spatial.draw(rng, shape)
        if self.intensity:
            drawn |= self.intensity.draw(rng)
        return drawn

    def voxel_map(
        self, parameters: dict[str, Shaped[Tensor, "N ..."]], shape: Triple, spacing_mm: Float[Tensor, "N 3"]
    ) -> Float64[Tensor, "N 4 4"]:
        """``Float64[N, 4, 4]`` from view voxel index to crop voxel index, without making the views.

        parameters: stacked draws; shape: voxels of the crops; spacing_mm: ``[N, 3]`` mm per voxel.
        """
        if self.spatial:
            return voxel_map(parameters, shape, spacing_mm)
        return torch.eye(4, dtype=torch.float64, device=spacing_mm.device).repeat(len(spacing_mm), 1, 1)

    def apply(
        self,
        voxels: Float[Tensor, "N C D H W"],
        parameters: dict[str, Shaped[Tensor, "N ..."]],
        spacing_mm: Float[Tensor, "N 3"],
        labels: Shaped[Tensor, "N D H W"] | None = None,
    ) -> ViewResult:
        """Make views of crops. The crops are not changed.

        voxels: ``Float[N, C, D, H, W]``; parameters: stacked draws, leading N; spacing_mm: ``[N, 3]`` mm per
        voxel; labels: ``[N, D, H, W]``, moved like the voxels (nearest).
        """
        # The CPU reads the parameters, since they determine which samples are changed.
        parameters, spacing_mm = {name: value.cpu() for name, value in parameters.items()}, spacing_mm.cpu()
        depth, height, width = voxels.shape[2:]
        maps = self.voxel_map(parameters, (depth, height, width), spacing_mm)
        if self.spatial:
            voxels, labels = warp(voxels, labels, parameters, maps)
        else:
            voxels = voxels.clone()
        if self.intensity:
            self.intensity.apply(voxels, parameters, spacing_mm)
        return ViewResult(voxels, maps, labels)


@VIEWS.register("mri")
def mri(
    *,
    flip_probability: Flips = (0.5, 0.5, 0.5),
    affine_probability: Fraction = 0.5,
    rotation_degrees: Degrees = 15.0,
    scale: Interval = (0.8, 1.25),
    scale_each_axis: bool = False,
    shear_degrees: Lean = 0.0,
    translation_mm: NonNegative = 0.0,
    blur_probability: Fraction = 0.2,
    blur_sigma: Interval = (0.5, 1.0),
    blur_unit: Literal["voxel", "mm"] = "voxel",
    low_resolution_probability: Fraction = 0.2,
    low_resolution: Fractions = (0.5, 1.0),
    noise_probability: Fraction = 0.2,
    noise_std: NonNegative = 0.3,
    contrast_probability: Fraction = 0.3,
    contrast: Interval = (0.75, 1.33),
    brightness_probability: Fraction = 0.3,
    brightness: NonNegative = 0.3,
    gamma_probability: Fraction = 0.3,
    gamma: Interval = (0.7, 1.5),
    gamma_inverted: Fraction = 0.25,
    cutout_probability: Fraction = 0.1,
    cutout_size: Fractions = (0.1, 0.4),
) -> Recipe:
    """All augmentations, for MR, whose intensities have no unit. Strengths after nnU-Net (Isensee 2021).

    Intensity strengths are in standard deviations of the scan's body. Parameters are drawn independently:
    uniformly, or log-uniformly if noted.

    flip_probability            for each of the axes right, front, head; [0, 0.5, 0.5] if left and right
                                matter
    affine_probability          of scale, shear, rotation and translation (together)
    rotation_degrees            largest angle about each axis; a slab is rotated in its plane only
    scale                       factors by which the anatomy is enlarged, log-uniform
    scale_each_axis             one factor per axis, or one for all
    shear_degrees               largest angle of shear between two axes
    translation_mm              largest shift along each axis
    blur_probability, blur_sigma, blur_unit     Gaussian blur, standard deviation in `voxel` or `mm`
    low_resolution_probability, low_resolution  one factor of resolution for all axes, log-uniform
    noise_probability, noise_std                Gaussian noise of standard deviation 0 to noise_std
    contrast_probability, contrast              factors about the view's mean, log-uniform
    brightness_probability, brightness          shift up to this, in both directions
    gamma_probability, gamma                    exponents on the view's range, log-uniform; mean and spread
                                                are kept
    gamma_inverted                              fraction of the gammas applied to the inverted view
    cutout_probability, cutout_size             a box with these fractions of each axis is set to the view's
                                                mean
    """
    given = locals()
    return Recipe(_with_fields(Spatial, given), _with_fields(Intensity, given))


def _with_fields(kind: type[T], given: Mapping[str, Any]) -> T:
    """The distribution `kind` with those of the given fields that it has."""
    return kind(**{field.name: given[field.name] for field in fields(kind)})


@VIEWS.register("ct")
def ct(
    *,
    flip_probability: Flips = (0.5, 0.5, 0.5),
    affine_probability: Fraction = 0.5,
    rotation_degrees: Degrees = 15.0,
    scale: Interval = (0.8, 1.25),
    scale_each_axis: bool = False,
    shear_degrees: Lean = 0.0,
    translation_mm: NonNegative = 0.0,
    blur_probability: Fraction = 0.2,
    blur_sigma: Interval = (0.5, 1.0),
    blur_unit: Literal["voxel", "mm"] = "voxel",
    low_resolution_probability: Fraction = 0.2,
    low_resolution: Fractions = (0.5, 1.0),
    noise_probability: Fraction = 0.2,
    noise_std: NonNegative = 0.2,
    contrast_probability: Fraction = 0.2,
    contrast: Interval = (0.9, 1.11),
    brightness_probability: Fraction = 0.2,
    brightness: NonNegative = 0.1,
    cutout_probability: Fraction = 0.1,
    cutout_size: Fractions = (0.1, 0.4),
) -> Recipe:
    """Augmentations for CT, whose intensities are densities: no gamma, little contrast and brightness.

    All fields as in `mri`, without gamma.
    """
    return mri(**locals(), gamma_probability=0.0)


@VIEWS.register("shape")
def shape(
    *,
    flip_probability: Flips = (0.5, 0.5, 0.5),
    affine_probability: Fraction = 0.5,
    rotation_degrees: Degrees = 15.0,
    scale: Interval = (0.8, 1.25),
    scale_each_axis: bool = False,
    shear_degrees: Lean = 0.0,
    translation_mm: NonNegative = 0.0,
) -> Recipe:
    """Spatial augmentations only: for masks and shapes, whose voxels are not intensities.

    All fields as in `mri`, of which it has the first seven.
    """
    return Recipe(Spatial(**locals()))


@VIEWS.register("none")
def none() -> Recipe:
    """The unchanged crop: a control, or for pairs that differ without augmentation."""
    return Recipe()
