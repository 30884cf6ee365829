"""Recipes: which transforms make a view of an MR scan, of a CT scan, of a mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from medcl3d.registry import Fraction, NonNegative, Positive
from medcl3d.types import Triple
from medcl3d.views import VIEWS
from medcl3d.views.intensity import Blur, Brightness, Contrast, Cutout, Gamma, IntensityTransform, LowResolution, Noise
from medcl3d.views.spatial import Affine, Flip, resample, voxel_map

PositiveRange = tuple[Positive, Positive]
Range = tuple[NonNegative, NonNegative]
Axes = tuple[Annotated[int, Field(ge=0, le=2)], ...]


@dataclass(frozen=True)
class ViewResult:
    """voxels ``[N, C, D, H, W]``; voxel_map ``Float64[N, 4, 4]`` view voxel index -> crop voxel index; labels ``[N, D, H, W]``."""

    voxels: Tensor
    voxel_map: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class Recipe:
    """A flip, an affine map and intensity transforms in order: draw for one view, apply to a batch."""

    flip: Flip
    affine: Affine
    intensity: tuple[IntensityTransform, ...] = ()

    def draw(self, rng: np.random.Generator, shape: Triple) -> dict[str, np.ndarray]:
        """The parameters of one view of `shape` voxels."""
        parameters: dict[str, np.ndarray] = {}
        for transform in (self.flip, self.affine, *self.intensity):
            parameters |= transform.draw(rng, shape)
        return parameters

    def voxel_map(self, parameters: dict[str, Tensor], shape: Triple, spacing_mm: Tensor) -> Tensor:
        """``Float64[N, 4, 4]`` from view to crop voxel indices, on the CPU."""
        return voxel_map(parameters, shape, spacing_mm)

    def apply(self, voxels: Tensor, parameters: dict[str, Tensor], spacing_mm: Tensor, labels: Tensor | None = None) -> ViewResult:
        """The views of a batch of crops; a sample's view depends on its own parameters alone.

        voxels: ``Float[N, C, D, H, W]``, left as they are; parameters: stacked draws; spacing_mm: ``[N, 3]``;
        labels: ``Int[N, D, H, W]``, taken through the same map by the nearest voxel.
        """
        mapping = self.voxel_map(parameters, tuple(voxels.shape[2:]), spacing_mm)
        views = resample(voxels, parameters, mapping, "bilinear")
        if views is voxels and self.intensity:
            views = voxels.clone()
        # The noise seeds stay on the CPU, where a generator is seeded.
        known = {**parameters, "spacing_mm": spacing_mm.to(views.device, torch.float32)}
        for transform in self.intensity:
            transform.apply(views, known)
        seen = None if labels is None else resample(labels[:, None].float(), parameters, mapping, "nearest")[:, 0].to(labels.dtype)
        return ViewResult(views, mapping.to(views.device), seen)


@VIEWS.register("mri")
def mri(
    *,
    flip_axes: Axes = (0,),
    flip_probability: Fraction = 0.5,
    rotation_degrees: NonNegative = 15.0,
    scale: PositiveRange = (0.8, 1.25),
    anisotropy: Annotated[float, Field(ge=1)] = 1.1,
    translation_mm: NonNegative = 0.0,
    affine_probability: Fraction = 0.5,
    noise_std: Range = (0.0, 0.3),
    noise_probability: Fraction = 0.2,
    blur_sigma_mm: Range = (0.5, 1.5),
    blur_probability: Fraction = 0.2,
    brightness: PositiveRange = (0.75, 1.25),
    brightness_probability: Fraction = 0.3,
    contrast: PositiveRange = (0.65, 1.5),
    contrast_probability: Fraction = 0.3,
    low_resolution: PositiveRange = (0.5, 1.0),
    low_resolution_probability: Fraction = 0.2,
    gamma: PositiveRange = (0.7, 1.5),
    gamma_probability: Fraction = 0.3,
    cutout_edge: Range = (0.1, 0.4),
    cutout_probability: Fraction = 0.0,
) -> Recipe:
    """Views of MR scans, whose grey values have no unit: every transform there is.

    Strengths follow nnU-Net's (Isensee et al., Nature Methods 2021, supplement), with the flip only between right
    and left, where a body is nearly symmetric. Intensities are those of the store: mean 0, standard deviation 1.
    """
    return Recipe(
        Flip(flip_axes, flip_probability),
        Affine(rotation_degrees, scale, anisotropy, translation_mm, affine_probability),
        (
            Noise(noise_std, noise_probability),
            Blur(blur_sigma_mm, blur_probability),
            Brightness(brightness, brightness_probability),
            Contrast(contrast, contrast_probability),
            LowResolution(low_resolution, low_resolution_probability),
            Gamma(gamma, gamma_probability),
            Cutout(cutout_edge, cutout_probability),
        ),
    )


@VIEWS.register("ct")
def ct(
    *,
    flip_axes: Axes = (0,),
    flip_probability: Fraction = 0.5,
    rotation_degrees: NonNegative = 15.0,
    scale: PositiveRange = (0.8, 1.25),
    anisotropy: Annotated[float, Field(ge=1)] = 1.1,
    translation_mm: NonNegative = 0.0,
    affine_probability: Fraction = 0.5,
    noise_std: Range = (0.0, 0.1),
    noise_probability: Fraction = 0.3,
    blur_sigma_mm: Range = (0.5, 1.5),
    blur_probability: Fraction = 0.2,
    brightness: PositiveRange = (0.9, 1.1),
    brightness_probability: Fraction = 0.2,
    low_resolution: PositiveRange = (0.5, 1.0),
    low_resolution_probability: Fraction = 0.2,
    cutout_edge: Range = (0.1, 0.4),
    cutout_probability: Fraction = 0.0,
) -> Recipe:
    """Views of CT scans, whose grey values are a measure: little brightness, no contrast and no gamma."""
    return Recipe(
        Flip(flip_axes, flip_probability),
        Affine(rotation_degrees, scale, anisotropy, translation_mm, affine_probability),
        (
            Noise(noise_std, noise_probability),
            Blur(blur_sigma_mm, blur_probability),
            Brightness(brightness, brightness_probability),
            LowResolution(low_resolution, low_resolution_probability),
            Cutout(cutout_edge, cutout_probability),
        ),
    )


@VIEWS.register("shape")
def shape(
    *,
    flip_axes: Axes = (0, 1, 2),
    flip_probability: Fraction = 0.5,
    rotation_degrees: NonNegative = 30.0,
    scale: PositiveRange = (0.8, 1.25),
    anisotropy: Annotated[float, Field(ge=1)] = 1.2,
    translation_mm: NonNegative = 0.0,
    affine_probability: Fraction = 0.8,
) -> Recipe:
    """Views of masks and shapes, whose voxels hold no grey value: space alone."""
    return Recipe(Flip(flip_axes, flip_probability), Affine(rotation_degrees, scale, anisotropy, translation_mm, affine_probability))


@VIEWS.register("none")
def none() -> Recipe:
    """The crop as it is."""
    return Recipe(Flip((), 0.0), Affine(0.0, (1.0, 1.0), 1.0, 0.0, 0.0))


