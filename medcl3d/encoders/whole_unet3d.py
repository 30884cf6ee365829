"""A U-Net with its own decoder as an encoder: the network of anatomix."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, cat, nn

from medcl3d.config.field_types import PositiveInt
from medcl3d.core.embeddings import Features
from medcl3d.core.errors import ConfigError
from medcl3d.core.geometry import Triple
from medcl3d.encoders import ENCODERS
from medcl3d.encoders.blocks import global_average


@ENCODERS.register("whole_unet3d")
class WholeUNet3d(nn.Module):
    """Two convolutions per stage, max pooling between stages, and a decoder whose output is the finest map.

    width         channels of the first stage, doubled by each further one
    num_downs     number of poolings
    out_channels  channels of the finest map

    Maps: the decoder's output at full resolution, then the encoder's stages from stride 2 on. The pooled
    features average the coarsest and the finest, so that every parameter has an effect on them. Convolutions
    reflect at the border and have no bias; each but the last is followed by batch norm and ReLU. Parameter
    names are those of anatomix.
    Source: Dey et al. 2025, Learning General-Purpose Biomedical Volume Representations, arXiv:2411.02372.
    """

    embeds_patches: ClassVar[bool] = True  # the poolings do

    def __init__(
        self,
        in_channels: int,
        *,
        width: PositiveInt = 16,
        num_downs: PositiveInt = 4,
        out_channels: PositiveInt = 16,
    ):
        super().__init__()
        widths = [width, *(width * 2**stage for stage in range(num_downs)), width * 2**num_downs]
        layers = [*_convolved(in_channels, width)]
        self._stage_ends, self._joined = [], []
        for below, above in pairwise(widths):
            layers += [*_convolved(below, above), *_convolved(above, above)]
            self._stage_ends.append(len(layers) - 1)
            layers.append(nn.MaxPool3d(2))
        layers.pop()  # the last stage is not pooled
        stages = widths[1:]
        for below, above in zip(stages[:0:-1], stages[-2::-1], strict=True):
            self._joined.append(len(layers))
            layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
            layers += [*_convolved(below + above, above), *_convolved(above, above)]
        layers.append(_convolution(width, out_channels))
        self.model = nn.Sequential(*layers)
        self.channels: tuple[int, ...] = (out_channels, *stages[1:])
        self.strides: tuple[Triple, ...] = tuple((2**s, 2**s, 2**s) for s in range(num_downs + 1))
        self.num_features = self.channels[-1] + out_channels

    def forward(self, x: Float[Tensor, "B C D H W"]) -> Features:
        """Features of ``[B, C, D, H, W]``: pooled ``[B, num_features]``, maps finest first.

        ConfigError if the coarsest map would have one voxel along an axis: it could not be reflected.
        """
        least = 2 * self.strides[-1][0]
        if min(x.shape[2:]) < least:
            problem = "smaller than two voxels of the coarsest map of whole_unet3d, whose border is reflected"
            raise ConfigError("data.patch_size", list(x.shape[2:]), problem, f"use {least} or more per axis")
        stages: list[Tensor] = []
        skipped: list[Tensor] = []
        for index, layer in enumerate(self.model):
            x = layer(x)
            if index in self._joined:
                x = cat((skipped.pop(), x), dim=1)
            if index in self._stage_ends:
                stages.append(x)
                skipped = stages[:-1]
        pooled = cat((global_average(stages[-1]), global_average(x)), dim=1)
        return Features(pooled, (x, *stages[1:]))


def _convolution(width_in: int, width: int) -> nn.Conv3d:
    return nn.Conv3d(width_in, width, 3, padding=1, padding_mode="reflect", bias=False)


def _convolved(width_in: int, width: int) -> tuple[nn.Module, ...]:
    """A convolution with its norm and activation."""
    return _convolution(width_in, width), nn.BatchNorm3d(width), nn.ReLU(inplace=True)
