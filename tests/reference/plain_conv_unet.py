"""nnU-Net's `PlainConvUNet`, rebuilt from the kwargs of a plans file with nnU-Net's parameter names.

Source: dynamic_network_architectures 0.4.4, `PlainConvEncoder` and `UNetDecoder`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Conv(nn.Module):
    """ConvDropoutNormReLU: each part has two names in the state."""

    def __init__(self, width_in: int, width: int, kernel: list[int], stride: list[int]):
        super().__init__()
        padding = [(k - 1) // 2 for k in kernel]
        self.conv = nn.Conv3d(width_in, width, kernel, stride, padding)
        self.norm = nn.InstanceNorm3d(width, eps=1e-5, affine=True)
        self.all_modules = nn.Sequential(self.conv, self.norm, nn.LeakyReLU(0.01))

    def forward(self, x: Tensor) -> Tensor:
        return self.all_modules(x)


class Stacked(nn.Module):
    def __init__(self, number: int, width_in: int, width: int, kernel: list[int], stride: list[int]):
        super().__init__()
        first = Conv(width_in, width, kernel, stride)
        self.convs = nn.Sequential(first, *(Conv(width, width, kernel, [1, 1, 1]) for _ in range(number - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x)


class Encoder(nn.Module):
    def __init__(self, in_channels: int, k: dict[str, Any]):
        super().__init__()
        widths = [in_channels, *k["features_per_stage"]]
        parts = zip(k["n_conv_per_stage"], widths, widths[1:], k["kernel_sizes"], k["strides"], strict=False)
        self.stages = nn.Sequential(*(nn.Sequential(Stacked(*part)) for part in parts))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Decoder(nn.Module):
    def __init__(self, encoder: Encoder, k: dict[str, Any], num_classes: int):
        super().__init__()
        self.encoder = encoder
        widths, steps, kernels = k["features_per_stage"], k["strides"], k["kernel_sizes"]
        pairs = [(widths[-s], widths[-s - 1], steps[-s], kernels[-s - 1]) for s in range(1, len(widths))]
        self.transpconvs = nn.ModuleList(nn.ConvTranspose3d(b, w, step, step) for b, w, step, _ in pairs)
        numbers = k["n_conv_per_stage_decoder"]
        self.stages = nn.ModuleList(
            Stacked(number, 2 * w, w, kernel, [1, 1, 1])
            for number, (_, w, _, kernel) in zip(numbers, pairs, strict=True)
        )
        self.seg_layers = nn.ModuleList(nn.Conv3d(w, num_classes, 1) for _, w, _, _ in pairs)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The decoded map, and the logits."""
        x = maps[-1]
        for s, (up, stage) in enumerate(zip(self.transpconvs, self.stages, strict=True)):
            x = stage(torch.cat((up(x), maps[-s - 2]), 1))
        return x, self.seg_layers[-1](x)


class PlainConvUNet(nn.Module):
    def __init__(self, in_channels: int, num_classes: int, kwargs: dict[str, Any]):
        super().__init__()
        self.encoder = Encoder(in_channels, kwargs)
        self.decoder = Decoder(self.encoder, kwargs, num_classes)
