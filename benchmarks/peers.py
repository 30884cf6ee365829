"""Transforms of MONAI and batchgeneratorsv2 with the ranges and probabilities of the `mri` recipe.

Flip, affine, blur, low resolution, noise and gamma, as in `benchmarks.views.torchio_transform`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from medcl3d.config.field_types import Choice
from medcl3d.views import VIEWS


def monai_transforms(key: str | None = None) -> list[Any]:
    """MONAI's transforms of an array ``[C, D, H, W]``, or of `key` in a dictionary."""
    import monai.transforms as mt

    space, grey = _recipe()
    angle = math.radians(space.rotation_degrees)
    scale = tuple(edge - 1 for edge in space.scale)  # MONAI adds 1, and scales each axis
    suffix, first = ("", ()) if key is None else ("d", (key,))

    def made(name: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(mt, name + suffix)(*first, *args, **kwargs)

    flips = [made("RandFlip", prob=space.flip_probability[axis], spatial_axis=axis) for axis in range(3)]
    blur = {f"sigma_{axis}": grey.blur_sigma for axis in "xyz"}
    return [
        *flips,
        made(
            "RandAffine",
            prob=space.affine_probability,
            rotate_range=(angle,) * 3,
            scale_range=(scale,) * 3,
            mode="bilinear",
            padding_mode="border",
        ),
        made("RandGaussianSmooth", prob=grey.blur_probability, **blur),
        made(
            "RandSimulateLowResolution",
            prob=grey.low_resolution_probability,
            zoom_range=grey.low_resolution,
        ),
        made("RandGaussianNoise", prob=grey.noise_probability, std=grey.noise_std),
        made("RandAdjustContrast", prob=grey.gamma_probability, gamma=grey.gamma),
    ]


def batchgenerators_transform(patch: Sequence[int]) -> Any:
    """batchgeneratorsv2's transforms of a tensor ``[C, D, H, W]``. ModuleNotFoundError if it is missing."""
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.random import RandomTransform

    space, grey = _recipe()
    angle = math.radians(space.rotation_degrees)
    affine = SpatialTransform(
        tuple(patch),
        0,
        False,
        p_rotation=1,
        rotation=(-angle, angle),
        p_scaling=1,
        scaling=space.scale,
        p_synchronize_scaling_across_axes=1,
        padding_mode_image="border",
    )
    blur = GaussianBlurTransform(grey.blur_sigma, synchronize_axes=True)
    low = SimulateLowResolutionTransform(
        grey.low_resolution, synchronize_channels=True, synchronize_axes=False, ignore_axes=()
    )
    noise = GaussianNoiseTransform((0, grey.noise_std**2))
    gamma = GammaTransform(
        grey.gamma, grey.gamma_inverted, synchronize_channels=True, p_per_channel=1, p_retain_stats=1
    )
    parts = (
        (affine, space.affine_probability),
        (blur, grey.blur_probability),
        (low, grey.low_resolution_probability),
        (noise, grey.noise_probability),
        (gamma, grey.gamma_probability),
    )
    return ComposeTransforms(
        [MirrorTransform((0, 1, 2)), *(RandomTransform(part, chance) for part, chance in parts)]
    )


def _recipe() -> tuple[Any, Any]:
    recipe = VIEWS.build(Choice("mri"))
    return recipe.spatial, recipe.intensity
