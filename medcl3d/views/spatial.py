"""Flips and affine maps of a batch of crops, each sample by its own, in the millimetres of its scan.

A sample's map is one matrix from view voxels to crop voxels, so that flip, scale, shear, rotation and
translation cost one interpolation together. Flips alone move voxels and interpolate nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias

import numpy as np
import torch
from pydantic import AfterValidator
from torch import Tensor
from torch.nn import functional as F

from medcl3d.registry import Positive
from medcl3d.types import Triple

# An axis this many times shorter than the longest is a stack of slices, which turns in its plane only:
# out of the plane almost every voxel would be padding (nnU-Net's rule, Isensee 2021).
THIN = 3


def _ordered(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError("the lower end comes first, as in [0.8, 1.25]")
    return interval


Interval: TypeAlias = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]


def log_uniform(share: np.ndarray, interval: tuple[float, float]) -> np.ndarray:
    """The point `share` (0 to 1) of the way through an interval of factors, so that 1/2 is as likely as 2."""
    return interval[0] * (interval[1] / interval[0]) ** share


@dataclass(frozen=True, kw_only=True)
class Spatial:
    """How a view lies in its crop.

    flip_probability     for each of the axes d, h, w
    affine_probability   of all that follows, drawn together
    rotation_degrees     largest angle about each axis, either way
    scale                factors by which the anatomy grows, log-uniform
    scale_each_axis      one factor an axis, or one for all
    shear_degrees        largest angle by which an axis leans over another
    translation_mm       largest shift along each axis
    """

    flip_probability: tuple[float, float, float] = (0.5, 0.5, 0.5)
    affine_probability: float = 0.5
    rotation_degrees: float = 15.0
    scale: tuple[float, float] = (0.8, 1.25)
    scale_each_axis: bool = False
    shear_degrees: float = 0.0
    translation_mm: float = 0.0

    def draw(self, rng: np.random.Generator, shape: Triple) -> dict[str, np.ndarray]:
        """The map of one view of `shape` voxels; what is not drawn is neutral. Always the same number of draws."""
        share = rng.random((5, 3))
        both_ways = 2 * rng.random((3, 3)) - 1
        thick = np.array(shape) * THIN >= max(shape)
        scale = log_uniform(share[2] if self.scale_each_axis else np.full(3, share[2, 0]), self.scale)
        # An angle about axis k, or a lean of one of its two neighbours, moves voxels along both others.
        in_plane = np.array([thick[1] & thick[2], thick[0] & thick[2], thick[0] & thick[1]])
        happens = share[1, 0] < self.affine_probability
        return {
            "flip": (share[0] < self.flip_probability).astype(np.float64),
            "rotation_degrees": happens * in_plane * both_ways[0] * self.rotation_degrees,
            "scale": np.where(happens & thick, scale, 1.0),
            "shear_degrees": happens * in_plane * both_ways[1] * self.shear_degrees,
            "translation_mm": happens * thick * both_ways[2] * self.translation_mm,
        }


def voxel_map(parameters: dict[str, Tensor], shape: Triple, spacing_mm: Tensor) -> Tensor:
    """``Float64[N, 4, 4]`` from view voxel index to crop voxel index, on the parameters' device.

    The anatomy is scaled, sheared, rotated (about d, then h, then w) and shifted about the crop's centre in
    mm, then mirrored. parameters: stacked draws of `Spatial`; spacing_mm: ``[N, 3]``.
    """
    p = {name: parameters[name].double() for name in ("flip", "rotation_degrees", "scale", "shear_degrees", "translation_mm")}
    spacing = spacing_mm.to(p["flip"])
    grow = _rotation(torch.deg2rad(p["rotation_degrees"])) @ _shear(torch.deg2rad(p["shear_degrees"])) * p["scale"][:, None, :]
    shrink = torch.linalg.inv(grow)
    # In this order of operations a map that is not there is the identity to the last bit.
    linear = shrink * spacing[:, None, :] / spacing[:, :, None] * (1 - 2 * p["flip"])[:, None, :]
    shift = torch.einsum("nij,nj->ni", shrink, p["translation_mm"]) / spacing
    center = (torch.tensor(shape, dtype=torch.float64, device=spacing.device) - 1) / 2
    result = torch.eye(4, dtype=torch.float64, device=spacing.device).repeat(len(spacing), 1, 1)
    result[:, :3, :3] = linear
    result[:, :3, 3] = center - linear @ center - shift
    return result


def _rotation(angle: Tensor) -> Tensor:
    """``[N, 3]`` radians about the axes d, h, w -> ``[N, 3, 3]``, the turn about d first."""
    (a, b, c), (x, y, z) = angle.cos().unbind(1), angle.sin().unbind(1)
    rows = (b * c, x * y * c - a * z, a * y * c + x * z, b * z, x * y * z + a * c, a * y * z - x * c, -y, x * b, a * b)
    return torch.stack(rows, dim=1).view(-1, 3, 3)


def _shear(angle: Tensor) -> Tensor:
    """``[N, 3]`` radians -> ``[N, 3, 3]``: entry k leans one of the two axes other than k over the other."""
    result = torch.eye(3, dtype=angle.dtype, device=angle.device).repeat(len(angle), 1, 1)
    result[:, 1, 2], result[:, 0, 2], result[:, 0, 1] = angle.tan().unbind(1)
    return result


def place(voxels: Tensor, labels: Tensor | None, parameters: dict[str, Tensor], maps: Tensor) -> tuple[Tensor, Tensor | None]:
    """Each sample of ``[N, C, D, H, W]`` through its map, and its labels ``[N, D, H, W]`` with it.

    Voxels linear, labels nearest; past the border the border's value stands. Samples without a map keep
    every bit, mirrored ones every value. parameters and maps on the CPU. The input is left as it is.
    """
    neutral = {"rotation_degrees": 0, "scale": 1, "shear_degrees": 0, "translation_mm": 0}
    warped = torch.stack([(parameters[name] != value).any(1) for name, value in neutral.items()]).any(0)
    voxels = voxels.clone()
    labels = None if labels is None else labels.clone()
    code = (parameters["flip"] @ torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)).long() * ~warped
    for number in code.unique().tolist():
        axes = [2 + axis for axis in range(3) if number >> axis & 1]
        if axes:
            rows = (code == number).nonzero()[:, 0].to(voxels.device)
            voxels[rows] = voxels[rows].flip(axes)
            if labels is not None:
                labels[rows] = labels[rows].flip([axis - 1 for axis in axes])
    if warped.any():
        rows = warped.nonzero()[:, 0].to(voxels.device)
        grid = _grid(maps[warped], voxels)
        voxels[rows] = F.grid_sample(voxels[rows], grid, align_corners=False)
        if labels is not None:
            found = F.grid_sample(labels[rows, None].to(grid), grid, mode="nearest", align_corners=False)
            labels[rows] = found[:, 0].to(labels.dtype)
    return voxels, labels


def _grid(maps: Tensor, voxels: Tensor) -> Tensor:
    """Where each view voxel lies in its crop, in `grid_sample`'s coordinates ``[n, D, H, W, 3]`` (w, h, d; -1 to 1 edge to edge).

    Built from one term an axis and held within the outermost voxel centres: both cost less than
    `affine_grid` and than padding with "border".
    """
    size = torch.tensor(voxels.shape[2:], dtype=torch.float64)
    linear = maps[:, :3, :3] * 2 / size[:, None]
    offset = (2 * maps[:, :3, 3] + 1) / size - 1
    depth, height, width = (int(n) for n in size)
    along = [(torch.arange(n)[:, None] * linear[:, None, :, k]).flip(2).to(voxels) for k, n in enumerate((depth, height, width))]
    plane = along[1][:, :, None] + (along[2] + offset.flip(1)[:, None].to(voxels))[:, None]
    slices = along[0][:, :, None, None].expand(-1, -1, -1, width, -1).reshape(len(maps), depth, 1, width * 3)
    grid = (slices + plane.reshape(len(maps), 1, height, width * 3)).view(len(maps), depth, height, width, 3)
    edge = (1 - 1 / size).flip(0).to(voxels)
    if depth == height == width:
        return grid.clamp_(-float(edge[0]), float(edge[0]))
    return torch.maximum(torch.minimum(grid, edge, out=grid), -edge, out=grid)
