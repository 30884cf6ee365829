"""A 3-D residual network with weights interchangeable with MONAI's `ResNet` and `SEResNet50`."""

from __future__ import annotations

from typing import Any, Literal

from jaxtyping import Float
from monai.networks.blocks.convolutions import Convolution
from monai.networks.blocks.squeeze_and_excitation import SEBlock
from monai.networks.layers.utils import get_act_layer, get_norm_layer
from monai.networks.nets.resnet import ResNetBlock, ResNetBottleneck
from torch import Tensor, nn

from medcl3d.config.field_types import Positive
from medcl3d.core.embeddings import Features
from medcl3d.core.errors import ConfigError
from medcl3d.core.geometry import Triple
from medcl3d.encoders import ENCODERS
from medcl3d.encoders.blocks import Norm, act_layer, global_average, norm_layer

WIDTHS = (64, 128, 256, 512)
SE_REDUCTION = 16
BLOCKS: dict[int, tuple[type[ResNetBlock] | type[ResNetBottleneck], tuple[int, int, int, int]]] = {
    10: (ResNetBlock, (1, 1, 1, 1)),
    18: (ResNetBlock, (2, 2, 2, 2)),
    34: (ResNetBlock, (3, 4, 6, 3)),
    50: (ResNetBottleneck, (3, 4, 6, 3)),
}


@ENCODERS.register("resnet3d")
class ResNet3d(nn.Module):
    """ResNet of `depth` layers; `width` multiplies all channels (64, 128, 256, 512 at width 1).

    One map per stride: the stem's output (left out if `max_pool` is off, since the first stage then has its
    stride) and the four stages. Shortcuts are 1x1x1 convolutions without a bias (MONAI's type B): its type A
    blocks the gradient of the shortcut. The stages are built here because MONAI 1.6 passes `norm` to the stem
    only and keeps batch norm in the blocks.

    depth                 number of layers
    width                 factor of all channels
    norm                  normalisation in the blocks
    stem_stride           stride of the first convolution
    stem_kernel           kernel of the first convolution, in voxels
    max_pool              pooling with stride 2 after the first convolution
    squeeze_excitation    each block scales its channels by a function of the global average of its map. MONAI
                          has such blocks as bottlenecks, so depth 50 only. They stride in the first
                          convolution, and the pooling after the stem pads at the far end: with batch norm and
                          width 1 it is MONAI's `SEResNet50` (`layer0.` is our stem)
    Source: He et al. 2016, Deep Residual Learning; Hara et al. 2018 for the 3-D form; Hu et al. 2018,
    Squeeze-and-Excitation.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        depth: Literal[10, 18, 34, 50] = 18,
        norm: Norm = "group",
        width: Positive = 1.0,
        stem_stride: Literal[1, 2] = 2,
        stem_kernel: Literal[3, 5, 7] = 7,
        max_pool: bool = True,
        squeeze_excitation: bool = False,
    ):
        super().__init__()
        block, num_blocks = BLOCKS[depth]
        if squeeze_excitation and block is not ResNetBottleneck:
            raise ConfigError(
                problem=f"squeeze_excitation needs bottleneck blocks, which depth = {depth} does not have",
                remedy="set depth: 50",
            )
        widths = [max(1, int(base * width)) for base in WIDTHS]
        self.conv1 = nn.Conv3d(
            in_channels, widths[0], stem_kernel, stride=stem_stride, padding=stem_kernel // 2, bias=False
        )
        self.bn1 = get_norm_layer(norm_layer(norm, widths[0]), spatial_dims=3, channels=widths[0])
        self.act = get_act_layer(act_layer("relu"))
        padding = {"ceil_mode": True} if squeeze_excitation else {"padding": 1}
        pool = nn.MaxPool3d(kernel_size=3, stride=2, **padding)  # type: ignore[arg-type]
        self.maxpool = pool if max_pool else nn.Identity()
        planes_in = widths[0]
        stages: list[nn.Sequential] = []
        for planes, count in zip(widths, num_blocks, strict=True):
            stride = 2 if stages else 1
            stages.append(
                _excited_stage(planes_in, planes, count, stride, norm)
                if squeeze_excitation
                else _stage(block, planes_in, planes, count, stride, norm)
            )
            planes_in = planes * block.expansion
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

        first = stem_stride * (2 if max_pool else 1)
        stage_channels = tuple(planes * block.expansion for planes in widths)
        cumulative = ((stem_stride,) if max_pool else ()) + tuple(first * 2**i for i in range(4))
        self._stem_map = max_pool
        self.channels: tuple[int, ...] = ((widths[0],) if max_pool else ()) + stage_channels
        self.strides: tuple[Triple, ...] = tuple((s, s, s) for s in cumulative)
        # The pooling without padding in front centres its first voxel on the second one of the stem.
        shift = float(stem_stride) if squeeze_excitation and max_pool else 0.0
        self.shifts = {(s, s, s): shift for s in cumulative[int(max_pool) :]}
        self.num_features = self.channels[-1]
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def layers(self) -> tuple[tuple[str, ...], ...]:
        """The stem, then one layer per stage."""
        stages = enumerate((self.layer1, self.layer2, self.layer3, self.layer4), start=1)
        return (("conv1", "bn1"), *(tuple(f"layer{i}.{j}" for j in range(len(stage))) for i, stage in stages))

    def forward(self, x: Float[Tensor, "B C D H W"]) -> Features:
        """Features of ``[B, C, D, H, W]``: pooled ``[B, num_features]``, maps finest first."""
        x = self.act(self.bn1(self.conv1(x)))
        maps = [x] if self._stem_map else []
        x = self.maxpool(x)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return Features(global_average(x), tuple(maps))


def _stage(
    block: type[ResNetBlock] | type[ResNetBottleneck],
    planes_in: int,
    planes: int,
    num_blocks: int,
    stride: int,
    norm: Norm,
) -> nn.Sequential:
    """`num_blocks` residual blocks, the first with a stride, with MONAI's parameter names."""
    name = norm_layer(norm, planes)
    planes_out = planes * block.expansion
    shortcut = None
    if stride != 1 or planes_in != planes_out:
        shortcut = nn.Sequential(
            nn.Conv3d(planes_in, planes_out, kernel_size=1, stride=stride, bias=False),
            get_norm_layer(name, spatial_dims=3, channels=planes_out),
        )
    blocks = [block(planes_in, planes, spatial_dims=3, stride=stride, downsample=shortcut, norm=name)]
    blocks += [block(planes_out, planes, spatial_dims=3, norm=name) for _ in range(num_blocks - 1)]
    return nn.Sequential(*blocks)


def _excited_stage(planes_in: int, planes: int, num_blocks: int, stride: int, norm: Norm) -> nn.Sequential:
    """A stage of squeeze-and-excitation bottlenecks, as MONAI's `SEResNetBottleneck`, but with any norm."""
    planes_out = 4 * planes
    inner, outer, relu = norm_layer(norm, planes), norm_layer(norm, planes_out), act_layer("relu")

    def block(width_in: int, step: int) -> SEBlock:
        shortcut = None
        if step != 1 or width_in != planes_out:
            shortcut = Convolution(
                3, width_in, planes_out, strides=step, kernel_size=1, act=None, norm=outer, bias=False
            )
        return SEBlock(
            3,
            width_in,
            planes,
            planes,
            planes_out,
            conv_param_1=_options(step, 1, relu, inner),
            conv_param_2=_options(1, 3, relu, inner),
            conv_param_3=_options(1, 1, None, outer),
            project=shortcut,
            r=min(SE_REDUCTION, planes_out),
        )

    blocks = [block(planes_in, stride)]
    blocks += [block(planes_out, 1) for _ in range(num_blocks - 1)]
    return nn.Sequential(*blocks)


def _options(step: int, kernel: int, act: Any, norm: Any) -> dict[str, Any]:
    return {"strides": step, "kernel_size": kernel, "act": act, "norm": norm, "bias": False}
