"""A decoder from the feature maps of any encoder to full resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from monai.networks.blocks.dynunet_block import UnetBasicBlock
from torch import Tensor, nn

from medcl3d.core.geometry import Triple, triple
from medcl3d.encoders.blocks import Act, Norm, act_layer, norm_layer

INPUT_SKIP_CHANNELS = 8  # few, since full-resolution convolutions take most of the time


class Decoder(nn.Module):
    """The expanding path of a U-Net: a skip connection at every stride, up to the input's grid.

    in_channels  of the network's input, which is itself a skip connection if the finest map is strided
    channels     of the encoder's maps, finest first
    strides      cumulative strides of these maps, finest first; an axis may be strided less than others

    Each step doubles the resolution of the axes that need it (transposed convolution with kernel = stride,
    without overlap), concatenates the skip of that stride if one exists, and convolves.
    Between two maps further apart than a factor of two the steps have no skip. Source: Ronneberger et
    al. 2015, U-Net; Isensee et al. 2021, nnU-Net.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        strides: Sequence[Triple],
        *,
        norm: Norm = "group",
        act: Act = "leakyrelu",
    ):
        super().__init__()
        self._input_is_skip = max(strides[0]) > 1
        skips = [(triple(s), c) for s, c in zip(strides, channels, strict=True)]
        if self._input_is_skip:
            self.input_skip = nn.Sequential(_convolutions(in_channels, INPUT_SKIP_CHANNELS, norm, act))
            skips.insert(0, ((1, 1, 1), INPUT_SKIP_CHANNELS))
        self.steps = nn.ModuleList()
        stride, width = skips[-1]
        for target, skip_width in reversed(skips[:-1]):
            factors = _factors(stride, target)
            for i, factor in enumerate(factors):
                has_skip = i == len(factors) - 1
                width_out = skip_width if has_skip else max(skip_width, width // 2)
                self.steps.append(_Step(width, width_out, factor, skip_width if has_skip else 0, norm, act))
                width = width_out
            stride = target
        self.out_channels: int = width

    def forward(
        self, x: Float[Tensor, "B C D H W"], maps: Sequence[Float[Tensor, "B _ _ _ _"]]
    ) -> Float[Tensor, "B _ D H W"]:
        """``[B, out_channels, D, H, W]`` at the resolution of the input `x` ``[B, in_channels, D, H, W]``."""
        skips = [self.input_skip(x), *maps] if self._input_is_skip else list(maps)
        out = skips.pop()
        for step in self.steps:
            out = step(out, skips.pop() if step.takes_skip else None)
        return out


class _Step(nn.Module):
    """Upsample by `factor`, concatenate a skip if there is one, convolve."""

    def __init__(self, width_in: int, width_out: int, factor: Triple, skip_width: int, norm: Norm, act: Act):
        super().__init__()
        self.takes_skip = skip_width > 0
        self.up: nn.Module = (
            nn.Conv3d(width_in, width_out, kernel_size=1)
            if factor == (1, 1, 1)
            else nn.ConvTranspose3d(width_in, width_out, kernel_size=factor, stride=factor)
        )
        self.convolve = _convolutions(width_out + skip_width, width_out, norm, act)

    def forward(
        self, x: Float[Tensor, "B _ _ _ _"], skip: Float[Tensor, "B _ _ _ _"] | None
    ) -> Float[Tensor, "B _ _ _ _"]:
        up = self.up(x)
        return self.convolve(up if skip is None else torch.cat((up, skip), dim=1))


def _convolutions(width_in: int, width_out: int, norm: Norm, act: Act) -> nn.Module:
    name, activation = norm_layer(norm, width_out), act_layer(act)
    return UnetBasicBlock(3, width_in, width_out, 3, 1, norm_name=name, act_name=activation)


def _factors(stride: Triple, target: Triple) -> list[Triple]:
    """Upsampling steps from `stride` to `target`, at least one: 2 along axes with an even rest, else all.

    ValueError if an axis' stride is not a multiple of the target's.
    """
    if any(s % t for s, t in zip(stride, target, strict=True)):
        raise ValueError(f"an encoder's stride {stride} must be a multiple of its next finer one, {target}")
    remaining = [s // t for s, t in zip(stride, target, strict=True)]
    factors: list[Triple] = []
    while max(remaining) > 1 or not factors:
        factor = triple(2 if f % 2 == 0 else f for f in remaining)
        remaining = [f // step for f, step in zip(remaining, factor, strict=True)]
        factors.append(factor)
    return factors
