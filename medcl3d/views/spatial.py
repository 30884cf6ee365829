"""Flips and affine maps of a batch of crops, one map per sample, in mm of its scan.

A sample's map is one matrix from view voxels to crop voxels, so that flip, scale, shear, rotation and
translation need one interpolation together. Flips alone move voxels without interpolation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float64, Shaped
from pydantic import AfterValidator
from torch import Tensor

from medcl3d.config.field_types import Positive
from medcl3d.core.device import to_device
from medcl3d.core.geometry import Triple
from medcl3d.views.resampling import resample, resample_nearest

# A crop with an axis this many times shorter than the longest is a slab, which is rotated in its plane only:
# out of the plane almost every voxel would be padding (nnU-Net's rule, Isensee 2021).
THIN = 3

Parameters: TypeAlias = dict[str, Shaped[Tensor, "N ..."]]

# Parameters are drawn into one array, since each tensor of a batch adds transfer time from a worker.
ROWS = ("flip", "rotation_degrees", "scale", "shear_degrees", "translation_mm")
NEUTRAL = {"rotation_degrees": 0, "scale": 1, "shear_degrees": 0, "translation_mm": 0}


def _ordered(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError("the lower end comes first, as in [0.8, 1.25]")
    return interval


Interval: TypeAlias = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]


def log_uniform(uniform: Float[np.ndarray, ...], interval: tuple[float, float]) -> Float[np.ndarray, ...]:
    """Map `uniform` (0 to 1) to an interval of factors, uniform in the logarithm: 1/2 is as likely as 2."""
    return interval[0] * (interval[1] / interval[0]) ** uniform


@dataclass(frozen=True, kw_only=True)
class Spatial:
    """Distribution of spatial augmentations; the fields are those of the recipe `mri`.

    Parameters are drawn independently: uniformly, or log-uniformly for `scale`.
    """

    flip_probability: tuple[float, float, float] = (0.5, 0.5, 0.5)
    affine_probability: float = 0.5
    rotation_degrees: float = 15.0
    scale: tuple[float, float] = (0.8, 1.25)
    scale_each_axis: bool = False
    shear_degrees: float = 0.0
    translation_mm: float = 0.0

    def draw(self, rng: np.random.Generator, shape: Triple) -> dict[str, np.ndarray]:
        """Draw the parameters of a view of `shape` voxels, neutral if they do not occur, with fixed draws."""
        uniform = rng.random((5, 3))
        signed = 2 * rng.random((3, 3)) - 1
        thick = np.array(shape) * THIN >= max(shape)
        scale = log_uniform(uniform[2] if self.scale_each_axis else np.full(3, uniform[2, 0]), self.scale)
        # A rotation about axis k, or a shear between the two other axes, moves voxels along both of them.
        in_plane = np.array([thick[1] & thick[2], thick[0] & thick[2], thick[0] & thick[1]])
        affine = uniform[1, 0] < self.affine_probability
        drawn = np.empty((5, 3))
        drawn[0] = uniform[0] < self.flip_probability
        drawn[1] = affine * in_plane * signed[0] * self.rotation_degrees
        drawn[2] = np.where(affine & thick, scale, 1.0)
        drawn[3] = affine * in_plane * signed[1] * self.shear_degrees
        drawn[4] = affine * thick * signed[2] * self.translation_mm
        return {"spatial": drawn}


def named(parameters: Parameters) -> Parameters:
    """Stacked parameters ``spatial`` ``[N, 5, 3]`` by name, ``[N, 3]`` each."""
    return dict(zip(ROWS, parameters["spatial"].double().unbind(1), strict=True))


def voxel_map(
    parameters: Parameters, shape: Triple, spacing_mm: Float[Tensor, "N 3"]
) -> Float64[Tensor, "N 4 4"]:
    """``Float64[N, 4, 4]`` from view voxel index to crop voxel index, on the parameters' device.

    The anatomy is scaled, sheared, rotated (about d, then h, then w) and shifted about the crop's centre in
    mm, then mirrored. On a sheared scan this is done along its own axes: a rotation is then not a rotation in
    world coordinates, but the recorded map is exact. parameters: stacked draws of `Spatial`; spacing_mm:
    ``[N, 3]``.
    """
    p = named(parameters)
    spacing = spacing_mm.to(p["flip"])
    rotation = _rotation(torch.deg2rad(p["rotation_degrees"]))
    shear = _shear(torch.deg2rad(p["shear_degrees"]))
    inverse = torch.linalg.inv(rotation @ shear * p["scale"][:, None, :])
    # In this order of operations the map of neutral parameters is exactly the identity.
    linear = inverse * spacing[:, None, :] / spacing[:, :, None] * (1 - 2 * p["flip"])[:, None, :]
    shift = torch.einsum("nij,nj->ni", inverse, p["translation_mm"]) / spacing
    center = (torch.tensor(shape, dtype=torch.float64, device=spacing.device) - 1) / 2
    result = torch.eye(4, dtype=torch.float64, device=spacing.device).repeat(len(spacing), 1, 1)
    result[:, :3, :3] = linear
    result[:, :3, 3] = center - linear @ center - shift
    return result


def _rotation(angle: Float64[Tensor, "N 3"]) -> Float64[Tensor, "N 3 3"]:
    """``[N, 3]`` radians about the axes d, h, w -> ``[N, 3, 3]``, the rotation about d first."""
    (a, b, c), (x, y, z) = angle.cos().unbind(1), angle.sin().unbind(1)
    rows = (
        b * c,
        x * y * c - a * z,
        a * y * c + x * z,
        b * z,
        x * y * z + a * c,
        a * y * z - x * c,
        -y,
        x * b,
        a * b,
    )
    return torch.stack(rows, dim=1).view(-1, 3, 3)


def _shear(angle: Float64[Tensor, "N 3"]) -> Float64[Tensor, "N 3 3"]:
    """``[N, 3]`` radians -> ``[N, 3, 3]``: entry k shears between the two axes other than k."""
    result = torch.eye(3, dtype=angle.dtype, device=angle.device).repeat(len(angle), 1, 1)
    result[:, 1, 2], result[:, 0, 2], result[:, 0, 1] = angle.tan().unbind(1)
    return result


def warp(
    voxels: Float[Tensor, "N C D H W"],
    labels: Shaped[Tensor, "N D H W"] | None,
    parameters: Parameters,
    maps: Float64[Tensor, "N 4 4"],
) -> tuple[Float[Tensor, "N C D H W"], Shaped[Tensor, "N D H W"] | None]:
    """Resample each sample of ``[N, C, D, H, W]`` and its labels ``[N, D, H, W]`` through its map.

    Voxels linear, labels nearest; outside the crop, the border's value. Samples with neutral parameters keep
    every bit, mirrored ones every value. parameters and maps on the CPU. The input is not changed.
    """
    p = named(parameters)
    warped = torch.stack([(p[name] != value).any(1) for name, value in NEUTRAL.items()]).any(0)
    voxels = voxels.clone()
    labels = None if labels is None else labels.clone()
    code = (p["flip"] @ torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)).long() * ~warped
    for number in code.unique().tolist():
        axes = [2 + axis for axis in range(3) if number >> axis & 1]
        if axes:
            rows = to_device((code == number).nonzero()[:, 0], voxels.device)
            voxels.index_copy_(0, rows, voxels.index_select(0, rows).flip(axes))
            if labels is not None:
                labels.index_copy_(0, rows, labels.index_select(0, rows).flip([axis - 1 for axis in axes]))
    if warped.any():
        rows = to_device(warped.nonzero()[:, 0], voxels.device)
        voxels.index_copy_(0, rows, resample(voxels.index_select(0, rows), maps[warped]))
        if labels is not None:
            labels.index_copy_(0, rows, resample_nearest(labels.index_select(0, rows), maps[warped]))
    return voxels, labels
