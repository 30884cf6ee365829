"""Intensity augmentations of a batch of views, each sample with its own parameters and noise.

Stored intensities have about zero mean and unit standard deviation over a scan's body; strengths are in
that unit. The order follows an acquisition: point spread, sampling, noise, then display.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Real
from torch import Tensor

from medcl3d.core.device import to_device
from medcl3d.views.spatial import Parameters, log_uniform

# Parameters are drawn into one array: these, then corner and size of the cutout along d, h, w.
NAMES = ("low_resolution", "contrast", "gamma", "blur_sigma", "noise_std", "brightness", "gamma_inverted")


@dataclass(frozen=True, kw_only=True)
class Intensity:
    """Distribution of intensity augmentations; the fields are those of the recipe `mri`.

    Each probability applies to the fields that follow it. Parameters are drawn independently: uniformly, or
    log-uniformly for `low_resolution`, `contrast` and `gamma`.
    """

    blur_probability: float = 0.2
    blur_sigma: tuple[float, float] = (0.5, 1.0)
    blur_unit: Literal["voxel", "mm"] = "voxel"
    low_resolution_probability: float = 0.2
    low_resolution: tuple[float, float] = (0.5, 1.0)
    noise_probability: float = 0.2
    noise_std: float = 0.3
    contrast_probability: float = 0.3
    contrast: tuple[float, float] = (0.75, 1.33)
    brightness_probability: float = 0.3
    brightness: float = 0.3
    gamma_probability: float = 0.3
    gamma: tuple[float, float] = (0.7, 1.5)
    gamma_inverted: float = 0.25
    cutout_probability: float = 0.1
    cutout_size: tuple[float, float] = (0.1, 0.4)

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw the parameters of one view, neutral if they do not occur, with a fixed number of draws."""
        chance, value = rng.random((2, 8))
        corner, size = rng.random((2, 3))
        drawn = np.zeros(len(NAMES) + 6)
        drawn[:3] = 1.0
        for i, (probability, interval) in enumerate(
            (
                (self.low_resolution_probability, self.low_resolution),
                (self.contrast_probability, self.contrast),
                (self.gamma_probability, self.gamma),
            )
        ):
            if chance[i] < probability:
                drawn[i] = log_uniform(value[i], interval)
        drawn[3] = (chance[3] < self.blur_probability) * (
            self.blur_sigma[0] + (self.blur_sigma[1] - self.blur_sigma[0]) * value[3]
        )
        drawn[4] = (chance[4] < self.noise_probability) * self.noise_std * value[4]
        drawn[5] = (chance[5] < self.brightness_probability) * self.brightness * (2 * value[5] - 1)
        drawn[6] = value[7] < self.gamma_inverted
        if chance[6] < self.cutout_probability:
            drawn[-3:] = self.cutout_size[0] + (self.cutout_size[1] - self.cutout_size[0]) * size
            drawn[-6:-3] = corner * (1 - drawn[-3:])
        return {"intensity": drawn, "seed": np.array(rng.integers(2**62))}

    def apply(
        self, voxels: Float[Tensor, "N C D H W"], parameters: Parameters, spacing_mm: Float[Tensor, "N 3"]
    ) -> None:
        """Augment ``[N, C, D, H, W]`` in place. parameters, spacing_mm ``[N, 3]``: on the CPU."""
        p = named(parameters)
        sigma = p["blur_sigma"][:, None].expand(-1, 3)
        sigma = sigma / spacing_mm.double() if self.blur_unit == "mm" else sigma
        _where((sigma > 0).any(1) | (p["low_resolution"] != 1), voxels, _degrade, p | {"sigma": sigma})
        _noise(voxels, p["noise_std"], p["seed"])
        _where((p["contrast"] != 1) | (p["brightness"] != 0), voxels, _rescale, p)
        _where(p["gamma"] != 1, voxels, _gamma, p)
        _where((p["cutout_size"] > 0).all(1), voxels, _cutout, p)


def named(parameters: Parameters) -> Parameters:
    """Parameters ``intensity`` ``[N, 13]`` by name, ``[N]`` each, ``[N, 3]`` of the cutout, with ``seed``."""
    values = parameters["intensity"].double()
    cutout = {"cutout_corner": values[:, -6:-3], "cutout_size": values[:, -3:]}
    return dict(zip(NAMES, values[:, :-6].unbind(1), strict=True)) | cutout | {"seed": parameters["seed"]}


def _where(
    chosen: Bool[Tensor, " N"],
    voxels: Float[Tensor, "N C D H W"],
    change: Callable[[Tensor, Parameters], Tensor],
    parameters: Parameters,
) -> None:
    """Apply `change` only to the samples `chosen`; the others keep every bit and take no time."""
    if chosen.any():
        rows = chosen.nonzero()[:, 0]
        here = to_device(rows, voxels.device)
        voxels.index_copy_(
            0,
            here,
            change(voxels.index_select(0, here), {name: value[rows] for name, value in parameters.items()}),
        )


def _column(value: Real[Tensor, " N"], voxels: Float[Tensor, "N C D H W"]) -> Float[Tensor, "N 1 1 1 1"]:
    return to_device(value.to(voxels.dtype), voxels.device).view(-1, 1, 1, 1, 1)


def _degrade(voxels: Float[Tensor, "N C D H W"], p: Parameters) -> Float[Tensor, "N C D H W"]:
    """Blur and reduce resolution: both are linear along each axis, so one matrix per axis does both."""
    factor, sigma = (to_device(p[name], voxels.device) for name in ("low_resolution", "sigma"))
    for axis, length in enumerate(voxels.shape[2:]):
        if length > 1:
            matrix = low_resolution_matrix(factor, length) @ blur_matrix(sigma[:, axis], length)
            voxels = _along(voxels, matrix.to(voxels), axis)
    return voxels


def blur_matrix(sigma: Float[Tensor, " N"], length: int) -> Float64[Tensor, "N L L"]:
    """``Float64[N, L, L]``: a Gaussian of `sigma` voxels ``[N]``, normalised over the existing voxels."""
    index = torch.arange(length, dtype=torch.float64, device=sigma.device)
    apart = (index[:, None] - index) / sigma.double().clamp(min=1e-3)[:, None, None]
    # Cut at 6 sigma (1e-8): beyond, weights would be subnormal numbers, which multiply a hundred times
    # slower.
    weight = torch.exp(-0.5 * apart**2) * (apart.abs() < 6)
    return weight / weight.sum(2, keepdim=True)


def low_resolution_matrix(factor: Float[Tensor, " N"], length: int) -> Float64[Tensor, "N L L"]:
    """``Float64[N, L, L]``: averages over ``round(L * factor)`` equal cells, interpolated linearly to L."""
    num_cells = (length * factor.double()).round().clamp(1, length)[:, None, None]
    width = length / num_cells
    voxel = torch.arange(length, dtype=torch.float64, device=factor.device)
    cell = voxel[:, None]  # rows past num_cells are empty
    overlap = torch.minimum((cell + 1) * width, voxel + 1) - torch.maximum(cell * width, voxel)
    down = overlap.clamp(min=0) / width
    at = torch.minimum(((voxel + 0.5) / width - 0.5).clamp(min=0), num_cells - 1)
    up = (1 - (at - cell).abs()).clamp(min=0)
    return up.transpose(1, 2) @ down


def _along(
    voxels: Float[Tensor, "N C D H W"], matrix: Float[Tensor, "N L L"], axis: int
) -> Float[Tensor, "N C D H W"]:
    """Apply ``[N, L, L]`` along one of the axes d, h, w of ``[N, C, D, H, W]``."""
    shape = voxels.shape
    if axis == 2:
        return (voxels.reshape(len(voxels), -1, shape[4]) @ matrix.transpose(1, 2)).view(shape)
    planes = shape[1] if axis == 0 else shape[1] * shape[2]
    flat = voxels.reshape(len(voxels) * planes, shape[2 + axis], -1)
    return (matrix.repeat_interleave(planes, dim=0) @ flat).view(shape)


def _noise(voxels: Float[Tensor, "N C D H W"], std: Float[Tensor, " N"], seed: Int[Tensor, " N"]) -> None:
    """Add noise that depends only on each sample's seed (on one type of device), not on the batch."""
    generator = torch.Generator(voxels.device)
    for row in std.nonzero()[:, 0].tolist():
        generator.manual_seed(int(seed[row]))
        noise = torch.randn(voxels.shape[1:], generator=generator, dtype=voxels.dtype, device=voxels.device)
        voxels[row].add_(noise, alpha=float(std[row]))


def _rescale(voxels: Float[Tensor, "N C D H W"], p: Parameters) -> Float[Tensor, "N C D H W"]:
    factor = _column(p["contrast"], voxels)
    mean = voxels.mean((2, 3, 4), keepdim=True)
    return voxels.mul_(factor).add_(mean * (1 - factor) + _column(p["brightness"], voxels))


def _gamma(voxels: Float[Tensor, "N C D H W"], p: Parameters) -> Float[Tensor, "N C D H W"]:
    """x -> low + range * ((x - low) / range)^gamma per channel, then restore mean and standard deviation."""
    sign = 1 - 2 * _column(p["gamma_inverted"], voxels)
    x = voxels.mul_(sign)
    low, high = x.amin((2, 3, 4), keepdim=True), x.amax((2, 3, 4), keepdim=True)
    x, mean, spread = _standardise(x)
    smallest = torch.finfo(x.dtype).tiny
    # exp(gamma * log x) takes a quarter of the time of a power; the log of 0 is -inf, whose exponential is 0.
    x = (
        x.add_(mean - low)
        .clamp_(min=0)
        .div_((high - low).clamp(min=smallest))
        .log_()
        .mul_(_column(p["gamma"], voxels))
        .exp_()
    )
    x, _, changed = _standardise(x)
    return x.mul_(sign * spread / changed.clamp(min=smallest)).add_(sign * mean)


def _standardise(
    x: Float[Tensor, "N C D H W"],
) -> tuple[Float[Tensor, "N C D H W"], Float[Tensor, "N C 1 1 1"], Float[Tensor, "N C 1 1 1"]]:
    """Subtract each channel's mean in place; return the voxels, the mean and the standard deviation."""
    mean = x.mean((2, 3, 4), keepdim=True)
    x.sub_(mean)
    return x, mean, x.square().mean((2, 3, 4), keepdim=True).sqrt()


def _cutout(voxels: Float[Tensor, "N C D H W"], p: Parameters) -> Float[Tensor, "N C D H W"]:
    device = voxels.device
    corner, size = (to_device(p[name], device) for name in ("cutout_corner", "cutout_size"))
    inside = torch.ones((len(voxels), 1, 1, 1, 1), dtype=torch.bool, device=device)
    for axis, length in enumerate(voxels.shape[2:]):
        index = (torch.arange(length, dtype=torch.float64, device=device) + 0.5) / length
        low = corner[:, axis, None]
        along = (index >= low) & (index < low + size[:, axis, None])
        inside = inside & along.view([-1, 1] + [length if k == axis else 1 for k in range(3)])
    return torch.where(inside, voxels.mean((2, 3, 4), keepdim=True), voxels)
