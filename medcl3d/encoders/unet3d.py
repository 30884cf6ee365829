"""The encoder of a U-Net, residual or plain: one stage per stride, starting at full resolution."""

from __future__ import annotations

from typing import Any, Literal

from jaxtyping import Float
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetResBlock, get_conv_layer
from monai.networks.layers.utils import get_act_layer, get_norm_layer
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
    resenc        the blocks of nnU-Net's residual encoders: one more convolution before the first stage, and
                  shortcuts that average over the stride, then convolve if the channels change

    The finest stage determines the cost: at stride 1 its channels are convolved at full resolution. nnU-Net's
    residual encoders have resenc on, norm instance, channels [32, 64, 128, 256, 320, 320], strides [1, 2, 2,
    2, 2, 2] and blocks [1, 3, 4, 6, 6, 6].
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
        resenc: bool = False,
    ):
        super().__init__()
        if resenc and not residual:
            raise ConfigError(problem="resenc needs residual blocks", remedy="set residual: true")
        counts = (blocks,) * len(channels) if isinstance(blocks, int) else tuple(blocks)
        kernels = (3,) * len(channels) if kernel_sizes is None else tuple(kernel_sizes)
        for name, values in (("strides", strides), ("blocks", counts), ("kernel_sizes", kernels)):
            if len(values) != len(channels) or not channels:
                problem = f"has {len(values)} entries and channels = {list(channels)} has {len(channels)}"
                remedy = "give one entry per stage"
                raise ConfigError(name, list(values), problem, remedy, colon=False)
        block = PooledResBlock if resenc else UnetResBlock if residual else UnetBasicBlock
        self.stem = _stem(in_channels, channels[0], _three(kernels[0]), norm, act) if resenc else None
        self.stages = nn.ModuleList()
        cumulative, total = [], (1, 1, 1)
        for width_in, width, stride, count, kernel in zip(
            (channels[0] if resenc else in_channels, *channels),
            channels,
            strides,
            counts,
            kernels,
            strict=False,
        ):
            step, size = _three(stride), _three(kernel)
            self.stages.append(_stage(block, width_in, width, step, size, count, norm, act))
            total = (total[0] * step[0], total[1] * step[1], total[2] * step[2])
            cumulative.append(total)
        self.channels: tuple[int, ...] = tuple(channels)
        self.strides: tuple[Triple, ...] = tuple(cumulative)
        self.num_features = self.channels[-1]

    def layers(self) -> tuple[tuple[str, ...], ...]:
        """One layer per stage; the first also has the convolution before it."""
        stages = [
            [f"stages.{i}.{j}" for j in range(len(stage))]  # type: ignore[arg-type]
            for i, stage in enumerate(self.stages)
        ]
        if self.stem is not None:
            stages[0].insert(0, "stem")
        return tuple(map(tuple, stages))

    def forward(self, x: Float[Tensor, "B C D H W"]) -> Features:
        """Features of ``[B, C, D, H, W]``: pooled ``[B, num_features]``, maps finest first."""
        maps = []
        x = x if self.stem is None else self.stem(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return Features(global_average(x), tuple(maps))


class PooledResBlock(UnetResBlock):
    """A residual block whose shortcut averages over the stride, then convolves if the channels change.

    Source: He et al. 2019, Bag of Tricks (ResNet-D); nnU-Net's `BasicBlockD`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: Triple,
        stride: Triple | int,
        norm_name: tuple[str, dict[str, Any]],
        act_name: tuple[str, dict[str, Any]],
    ):
        super().__init__(
            spatial_dims, in_channels, out_channels, kernel_size, stride, norm_name, act_name=act_name
        )
        step = (stride,) * 3 if isinstance(stride, int) else stride
        self.pool = nn.AvgPool3d(step, step) if max(step) > 1 else nn.Identity()
        self.downsample = in_channels != out_channels
        if self.downsample:
            self.conv3 = get_conv_layer(spatial_dims, in_channels, out_channels, 1, 1, act=None, norm=None)
        elif hasattr(self, "conv3"):
            del self.conv3, self.norm3

    def forward(self, inp: Float[Tensor, "B C D H W"]) -> Float[Tensor, "B _ _ _ _"]:
        """The map ``[B, out_channels, D / stride, H / stride, W / stride]``."""
        shortcut = self.pool(inp)
        if self.downsample:
            shortcut = self.norm3(self.conv3(shortcut))
        out = self.norm2(self.conv2(self.lrelu(self.norm1(self.conv1(inp)))))
        return self.lrelu(out + shortcut)


def _stem(in_channels: int, channels: int, kernel: Triple, norm: Norm, act: Act) -> nn.Sequential:
    """One convolution with its normalisation and activation."""
    return nn.Sequential(
        get_conv_layer(3, in_channels, channels, kernel, 1, act=None, norm=None),
        get_norm_layer(norm_layer(norm, channels), spatial_dims=3, channels=channels),
        get_act_layer(act_layer(act)),
    )


def _three(value: int | tuple[int, int, int]) -> Triple:
    """One number for all axes, or three."""
    if isinstance(value, int):
        return value, value, value
    d, h, w = value
    return d, h, w


def _stage(
    block: type[nn.Module],
    width_in: int,
    width: int,
    stride: Triple,
    kernel: Triple,
    num_blocks: int,
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
    first = block(3, width_in, width, kernel, stride, norm_name=name, act_name=activation)
    rest = [
        block(3, width, width, kernel, 1, norm_name=name, act_name=activation) for _ in range(num_blocks - 1)
    ]
    return nn.Sequential(first, *rest)
