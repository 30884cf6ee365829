"""Where a view looks: flips and affine maps, in millimetres, with the map kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medcl3d.types import Triple

Parameters = dict[str, np.ndarray]


@dataclass(frozen=True)
class Flip:
    """Mirror each of `axes` with probability `probability`."""

    axes: tuple[int, ...]
    probability: float

    def draw(self, rng: np.random.Generator, shape: Triple) -> Parameters:
        """flip: ``Bool[3]``."""
        flip = np.zeros(3, dtype=bool)
        flip[list(self.axes)] = rng.random(len(self.axes)) < self.probability
        return {"flip": flip}


@dataclass(frozen=True)
class Affine:
    """Rotate, scale and shift about the view's centre, with probability `probability`.

    rotation_degrees  largest angle about each axis
    scale             smallest and largest zoom, log-uniform; anisotropy: how far the axes may differ from it (factor)
    translation_mm    largest shift along each axis
    """

    rotation_degrees: float
    scale: tuple[float, float]
    anisotropy: float
    translation_mm: float
    probability: float

    def draw(self, rng: np.random.Generator, shape: Triple) -> Parameters:
        """warp: ``Bool``; rotation: ``Float[3]`` radians; zoom: ``Float[3]``; shift_mm: ``Float[3]``."""
        angle = np.deg2rad(self.rotation_degrees)
        low, high = np.log(self.scale)
        uneven = np.log(self.anisotropy)
        zoom = np.exp(rng.uniform(low, high) + rng.uniform(-uneven, uneven, 3))
        return {
            "rotation": rng.uniform(-angle, angle, 3),
            "zoom": zoom,
            "shift_mm": rng.uniform(-self.translation_mm, self.translation_mm, 3),
            "warp": np.array(rng.random() < self.probability),
        }


def voxel_map(parameters: dict[str, Tensor], shape: Triple, spacing_mm: Tensor) -> Tensor:
    """``Float64[N, 4, 4]`` from the voxel indices of a view to those of the crop it is made from.

    Flip first (index i becomes n - 1 - i), then, where `warp` is drawn, rotation and zoom about the centre in mm:
    a turn by 10 degrees is one on any spacing.
    """
    count = len(spacing_mm)
    size = torch.tensor(shape, dtype=torch.float64)
    mirror = 1 - 2 * parameters["flip"].double().cpu()
    flip = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    flip[:, :3, :3] = torch.diag_embed(mirror)
    flip[:, :3, 3] = (1 - mirror) / 2 * (size - 1)
    spacing = spacing_mm.double().cpu()
    turn = _rotation(parameters["rotation"].double().cpu()) @ torch.diag_embed(1 / parameters["zoom"].double().cpu())
    linear = torch.diag_embed(1 / spacing) @ turn @ torch.diag_embed(spacing)
    affine = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    warp = parameters["warp"].cpu()
    affine[warp, :3, :3] = linear[warp]
    centre = (size - 1) / 2
    shift = parameters["shift_mm"].double().cpu() / spacing
    affine[warp, :3, 3] = (centre - linear @ centre + shift)[warp]
    return affine @ flip


def _rotation(angles: Tensor) -> Tensor:
    """Rotation about the axes d, h, w in turn: ``[N, 3]`` radians -> ``[N, 3, 3]``."""
    turns = []
    for axis in range(3):
        cosine, sine = angles[:, axis].cos(), angles[:, axis].sin()
        turn = torch.eye(3, dtype=angles.dtype).repeat(len(angles), 1, 1)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn[:, a, a], turn[:, b, b], turn[:, a, b], turn[:, b, a] = cosine, cosine, -sine, sine
        turns.append(turn)
    return turns[0] @ turns[1] @ turns[2]


def resample(volume: Tensor, parameters: dict[str, Tensor], mapping: Tensor, mode: str) -> Tensor:
    """The view of each volume ``[N, C, D, H, W]`` under its voxel map; the border is continued outwards.

    Samples that are only mirrored are not interpolated, those that are not drawn at all stay as they are.
    """
    warp, flip = parameters["warp"].to(volume.device), parameters["flip"].to(volume.device)
    if not (warp.any() or flip.any()):
        return volume
    result = volume.clone()
    rows = warp.nonzero().flatten()
    if len(rows):
        grid = _grid(mapping[rows.cpu()], volume.shape[2:], volume.device)
        result[rows] = F.grid_sample(volume[rows], grid, mode=mode, padding_mode="border", align_corners=False)
    for pattern in torch.unique(flip[~warp], dim=0):
        axes = [axis + 2 for axis in range(3) if pattern[axis]]
        rows = (~warp & (flip == pattern).all(1)).nonzero().flatten()
        if axes and len(rows):
            result[rows] = volume[rows].flip(axes)
    return result


def _grid(mapping: Tensor, shape: Any, device: torch.device) -> Tensor:
    """Normalised sampling coordinates of voxel maps: the order w, h, d and the range [-1, 1] that grid_sample wants."""
    size = torch.tensor(list(shape), dtype=torch.float64)
    to_index = torch.eye(4, dtype=torch.float64)
    to_index[:3, :3], to_index[:3, 3] = torch.diag(size / 2), (size - 1) / 2
    theta = (torch.linalg.inv(to_index) @ mapping @ to_index)[:, :3].to(torch.float32)
    theta = torch.cat([theta[:, :, :3].flip(1, 2), theta[:, :, 3:].flip(1)], dim=2)
    return F.affine_grid(theta.to(device), [len(mapping), 1, *shape], align_corners=False)
