"""The encoder of a U-Net, residual or plain: one stage per stride, starting at full resolution."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetResBlock
from torch import Tensor, nn

from medcl3d.config.field_types import PositiveInt
from medcl3d.core.embeddings import Features
from medcl3d.core.errors import ConfigError
from medcl3d.core.geometry import Triple
from medcl3d.encoders import ENCODERS
from medcl3d.encoders.blocks import Act, Norm, act_layer, global_average, norm_layer

Stride = Literal[1, 2]
Strides = tuple[Stride | tuple[Stride, Stride, Stride], ...]
Kernel = Literal[1, 3, 5]
Kernels = tuple[Kernel | tuple[Kernel, Kernel, Kernel], ...]


@ENCODERS.register("unet3d")
class UNet3d(nn.Module):
    """Stages of MONAI's `UnetResBlock`, or `UnetBasicBlock` without residuals; the first block strides.

    channels      of each stage, finest first
    strides       of each stage, one number or three (d, h, w): 1 along an axis of thick slices until the
                  other axes have the same spacing
    blocks        blocks per stage, of two convolutions each: one number, or one per stage
    kernel_sizes  of each stage (default 3 everywhere); 1 along an axis of thick slices
    residual      off: a plain U-Net; with one block per stage and instance norm it is the encoder of MONAI's
                  `DynUNet`
    norm          normalisation after each convolution
    act           activation after each normalisation

    The finest stage determines the cost: at stride 1 its channels are convolved at full resolution. nnU-Net's
    residual encoders have channels [32, 64, 128, 256, 320, 320], strides [1, 2, 2, 2, 2, 2], blocks [1, 3, 4,
    6, 6, 6], norm instance.
    Source: Isensee et al. 2021, nnU-Net; Isensee et al. 2024, nnU-Net Revisited, for the residual encoder.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        channels: tuple[PositiveInt, ...] = (8, 32, 64, 128),
        strides: Strides = (1, 2, 2, 2),
        blocks: PositiveInt | tuple[PositiveInt, ...] = 1,
        kernel_sizes: Kernels | None = None,
        residual: bool = True,
        norm: Norm = "group",
        act: Act = "leakyrelu",
    ):
        super().__init__()
        counts = (blocks,) * len(channels) if isinstance(blocks, int) else tuple(blocks)
        kernels = (3,) * len(channels) if kernel_sizes is None else tuple(kernel_sizes)
        for name, values in (("strides", strides), ("blocks", counts), ("kernel_sizes", kernels)):
            if len(values) != len(channels) or not channels:
                problem = f"has {len(values)} entries and channels = {list(channels)} has {len(channels)}"
                remedy = "give one entry per stage"
                raise ConfigError(name, list(values), problem, remedy, colon=False)
        self.stages = nn.ModuleList()
        cumulative, total = [], (1, 1, 1)
        for width_in, width, stride, count, kernel in zip(
            (in_channels, *channels), channels, strides, counts, kernels, strict=False
        ):
            step, size = _three(stride), _three(kernel)
            self.stages.append(_stage(width_in, width, step, size, count, residual, norm, act))
            total = (total[0] * step[0], total[1] * step[1], total[2] * step[2])
            cumulative.append(total)
        self.channels: tuple[int, ...] = tuple(channels)
        self.strides: tuple[Triple, ...] = tuple(cumulative)
        self.num_features = self.channels[-1]

    def layers(self) -> tuple[tuple[str, ...], ...]:
        """One layer per stage."""
        return tuple(
            tuple(f"stages.{i}.{j}" for j in range(len(stage)))  # type: ignore[arg-type]
            for i, stage in enumerate(self.stages)
        )

    def forward(self, x: Float[Tensor, "B C D H W"]) -> Features:
        """Features of ``[B, C, D, H, W]``: pooled ``[B, num_features]``, maps finest first."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return Features(global_average(x), tuple(maps))


def _three(value: int | tuple[int, int, int]) -> Triple:
    """One number for all axes, or three."""
    if isinstance(value, int):
        return value, value, value
    d, h, w = value
    return d, h, w


def _stage(
    width_in: int,
    width: int,
    stride: Triple,
    kernel: Triple,
    num_blocks: int,
    residual: bool,
    norm: Norm,
    act: Act,
) -> nn.Sequential:
    if any(k < s for k, s in zip(kernel, stride, strict=True)):
        raise ConfigError(
            problem=f"kernel_sizes {kernel} is smaller than strides {stride} in one stage, which "
            "skips voxels",
            remedy="use kernels at least as large as the strides",
        )
    name, activation = norm_layer(norm, width), act_layer(act)
    block = UnetResBlock if residual else UnetBasicBlock
    first = block(3, width_in, width, kernel, stride, norm_name=name, act_name=activation)
    rest = [
        block(3, width, width, kernel, 1, norm_name=name, act_name=activation) for _ in range(num_blocks - 1)
    ]
    return nn.Sequential(first, *rest)
