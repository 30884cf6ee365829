"""What a view looks like: noise, blur, brightness, contrast, low resolution, gamma, cutout.

Each transform draws its parameters for one view and applies them to the rows of a batch that drew it; rows
that did not stay as they are, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from medcl3d.types import Triple

Parameters = dict[str, np.ndarray]
Range = tuple[float, float]


class IntensityTransform(Protocol):
    """Drawing and applying are two methods, so that what was drawn can be kept and replayed."""

    def draw(self, rng: np.random.Generator, shape: Triple) -> Parameters:
        """The parameters of one view; a neutral value where the transform is not drawn."""

    def apply(self, voxels: Tensor, parameters: dict[str, Tensor]) -> None:
        """Change the rows of ``[N, C, D, H, W]`` that drew the transform, in place."""


def _drawn(rng: np.random.Generator, probability: float, low: float, high: float, neutral: float) -> np.ndarray:
    """A uniform draw with some probability, else `neutral`; both numbers are always drawn, so that streams stay aligned."""
    value, chance = rng.uniform(low, high), rng.random()
    return np.array(value if chance < probability else neutral, dtype=np.float32)


def _rows(values: Tensor, neutral: float) -> Tensor:
    return (values != neutral).nonzero().flatten()


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None, None]


@dataclass(frozen=True)
class Noise:
    """Add Gaussian noise with a standard deviation from `std`; its field is the view's own, from its `seed`."""

    std: Range
    probability: float

    def draw(self, rng: np.random.Generator, shape: Triple) -> Parameters:
        """noise_std; noise_seed."""
        return {"noise_std": _drawn(rng, self.probability, *self.std, 0.0), "noise_seed": np.array(rng.integers(2**62))}

    def apply(self, voxels: Tensor, parameters: dict[str, Tensor]) -> None:
        """Add the field."""
        for row in _rows(parameters["noise_std"], 0.0).tolist():
            field = torch.Generator(voxels.device).manual_seed(int(parameters["noise_seed"][row]))
            noise = torch.randn(voxels.shape[1:], generator=field, device=voxels.device, dtype=voxels.dtype)
            voxels[row].add_(noise, alpha=float(parameters["noise_std"][row]))


@dataclass(frozen=True)
class Blur:
    """Gaussian blur with a standard deviation from `sigma_mm`, the same in mm along every axis."""

    sigma_mm: Range
    probability: float

    def draw(self, rng: np.random.Generator, shape: Triple) -> Parameters:
        """blur_mm."""
        return {"blur_mm": _drawn(rng, self.probability, *self.sigma_mm, 0.0)}

    def apply(self, voxels: Tensor, parameters: dict[str, Tensor]) -> None:
        """Convolve along each axis; near the border the kernel is cut and normalised again."""
        rows = _rows(parameters["blur_mm"], 0.0)
        if len(rows):
            sigma = parameters["blur_mm"][rows, None] / parameters["spacing_mm"][rows]
            voxels[rows] = along_axes(voxels[rows], [_gaussian(sigma[:, axis], n) for axis, n in enumerate(voxels.shape[2:])])


@dataclass(frozen=True)
class LowResolution:
    """Sample at a coarser spacing (a share of the voxels from `zoom`) and interpolate back."""

    zoom: Range
    probability: float

    def draw(self, rng: np.random.Generator, shape: Triple) -> Parameters:
        """zoom_kept."""
        return {"zoom_kept": _drawn(rng, self.probability, *self.zoom, 1.0)}

    def apply(self, voxels: Tensor, parameters: dict[str, Tensor]) -> None:
        """Linear down and up along each axis."""
        rows = _rows(parameters["zoom_kept"], 1.0)
        if len(rows):
            kept = parameters["zoom_kept"][rows]
            voxels[rows] = along_axes(voxels[rows], [_coarse(kept, n) for n in voxels.shape[2:]])


@dataclass(frozen=True)
class Brightness:
    """Multiply by a factor from `factor`."""

    factor: Range
    probability: float

    def draw(self, rng: np.random.Generator, shape: Triple) -> Parameters:
        """brightness."""
        return {"brightness": _drawn(rng, self.probability, *self.factor, 1.0)}

    def apply(self, voxels: Tensor, parameters: dict[str, Tensor]) -> None:
        """Scale."""
        rows = _rows(parameters["brightness"], 1.0)
        if len(rows):
            voxels[rows] *= _column(parameters["brightness"][rows].to(voxels.dtype))


@dataclass(frozen=True)
class Contrast:
    """Stretch about the view's mean by a factor from `factor`, within the range it had."""

    factor: Range
    probability: float

    def draw(self, rng: np.random.Generator, shape: Triple) -> Parameters:
        """contrast."""
        return {"contrast": _drawn(rng, self.probability, *self.factor, 1.0)}

    def apply(self, voxels: Tensor, parameters: dict[str, Tensor]) -> None:
        """Scale about the mean and clip."""
        rows = _rows(parameters["contrast"], 1.0)
        if len(rows):
            part = voxels[rows]
            mean = part.mean((2, 3, 4), keepdim=True)
            stretched = (part - mean) * _column(parameters["contrast"][rows].to(part.dtype)) + mean
            voxels[rows] = stretched.clamp(part.amin((2, 3, 4), keepdim=True), part.amax((2, 3, 4), keepdim=True))


@dataclass(frozen=True)
class Gamma:
    """Raise to a power from `exponent` (log-uniform) after scaling to [0, 1], then scale back."""

    exponent: Range
    probability: float

    def draw(self, rng: np.random.Generator, shape: Triple) -> Parameters:
        """gamma."""
        low, high = np.log(self.exponent)
        return {"gamma": np.exp(_drawn(rng, self.probability, low, high, 0.0))}

    def apply(self, voxels: Tensor, parameters: dict[str, Tensor]) -> None:
        """The power within each channel's own range."""
        rows = _rows(parameters["gamma"], 1.0)
        if len(rows):
            part = voxels[rows]
            low, high = part.amin((2, 3, 4), keepdim=True), part.amax((2, 3, 4), keepdim=True)
            extent = (high - low).clamp(min=1e-6)
            voxels[rows] = ((part - low) / extent).clamp_(0, 1).pow_(_column(parameters["gamma"][rows].to(part.dtype))) * extent + low


@dataclass(frozen=True)
class Cutout:
    """Replace a box by the view's mean; its edges are a share of the view's from `edge` (DeVries and Taylor, 2017)."""

    edge: Range
    probability: float

    def draw(self, rng: np.random.Generator, shape: Triple) -> Parameters:
        """cut_start, cut_size: ``Int[3]`` voxels, size 0 where not drawn."""
        size = np.round(rng.uniform(*self.edge, 3) * np.array(shape)).astype(np.int64)
        start = rng.integers(0, np.array(shape) - size + 1)
        return {"cut_start": start, "cut_size": size * (rng.random() < self.probability)}

    def apply(self, voxels: Tensor, parameters: dict[str, Tensor]) -> None:
        """Fill the box."""
        for row in (parameters["cut_size"] > 0).all(1).nonzero().flatten().tolist():
            (a, b, c), (d, e, f) = parameters["cut_start"][row].tolist(), parameters["cut_size"][row].tolist()
            voxels[row, :, a : a + d, b : b + e, c : c + f] = voxels[row].mean((1, 2, 3))[:, None, None, None]


def along_axes(voxels: Tensor, matrices: list[Tensor]) -> Tensor:
    """Apply one linear map an axis: ``[N, C, D, H, W]`` with ``[N, D, D]``, ``[N, H, H]``, ``[N, W, W]``.

    As matrix products: on patches this beats convolutions with a kernel a sample, and takes any kernel width.
    """
    d, h, w = (matrix.to(voxels.device, voxels.dtype) for matrix in matrices)
    n, c, *shape = voxels.shape
    result = voxels.reshape(n, c * shape[0] * shape[1], shape[2]) @ w.transpose(1, 2)
    result = h[:, None] @ result.reshape(n, c * shape[0], shape[1], shape[2])
    result = d[:, None] @ result.reshape(n, c, shape[0], shape[1] * shape[2])
    return result.reshape(voxels.shape)


def _gaussian(sigma: Tensor, size: int) -> Tensor:
    """Rows of a Gaussian kernel, ``[N]`` voxels -> ``[N, size, size]``."""
    index = torch.arange(size, device=sigma.device)
    weight = torch.exp(-0.5 * ((index[:, None] - index) / sigma[:, None, None]) ** 2)
    return weight / weight.sum(2, keepdim=True)


def _coarse(kept: Tensor, size: int) -> Tensor:
    """Linear interpolation to round(kept * size) points and back, ``[N]`` -> ``[N, size, size]``."""
    fine = torch.arange(size, device=kept.device, dtype=torch.float32)
    points = (kept * size).round().clamp(1, size)[:, None]
    place = ((fine + 0.5) * size / points - 0.5).clamp(0, size - 1)  # of the coarse points, as many as are kept
    down = (1 - (place[:, :, None] - fine).abs()).clamp(min=0) * (fine < points)[:, :, None]
    back = torch.minimum(((fine + 0.5) * points / size - 0.5).clamp(min=0), points - 1)
    up = (1 - (back[:, :, None] - fine).abs()).clamp(min=0)
    return up @ down
