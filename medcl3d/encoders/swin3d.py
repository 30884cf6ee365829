"""A 3-D Swin transformer with weights interchangeable with the `swinViT` of MONAI's `SwinUNETR`."""

from __future__ import annotations

from typing import ClassVar, Literal

from jaxtyping import Float
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import Tensor, nn

from medcl3d.config.field_types import Positive, PositiveInt, Size
from medcl3d.core.embeddings import Features
from medcl3d.core.errors import ConfigError
from medcl3d.core.geometry import Triple, triple
from medcl3d.encoders import ENCODERS
from medcl3d.encoders.blocks import global_average

NUM_STAGES = 4  # MONAI's transformer has four, each ending with a merge of 2 x 2 x 2 tokens
Stages = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]


@ENCODERS.register("swin3d")
class Swin3d(nn.Module):
    """Shifted-window attention between tokens of patches; every second layer shifts windows by half.

    patch         voxels of a token along each axis; fewer along an axis of thick slices
    feature_size  width of a token in the first stage, doubled by each of the four; SwinUNETR requires
                  multiples of 12
    num_layers, num_heads    of each stage; a stage's width is divisible by its heads
    window_size   tokens along each axis that attend to each other; a smaller grid is one window
    mlp_ratio     width of the hidden layer after attention, relative to that of the token
    merging       order in which 8 tokens are merged into one: that of MONAI's first SwinUNETR, or of its
                  second
    v2            a residual block of convolutions before each stage: SwinUNETR-V2

    Five maps, as in SwinUNETR: the tokens and the output of each stage, each layer-normalised without learned
    scale. Crops must be divisible by 16 patches. Parameter names are those of SwinUNETR (`swinViT.`), the
    part of it that published pretrained weights contain; the decoder is our own.
    Source: Liu et al. 2021, Swin Transformer; Hatamizadeh et al. 2022, Swin UNETR; He et al. 2023,
    SwinUNETR-V2.
    """

    embeds_patches: ClassVar[bool] = True

    def __init__(
        self,
        in_channels: int,
        *,
        patch: Size = (2, 2, 2),
        feature_size: PositiveInt = 24,
        num_layers: Stages = (2, 2, 2, 2),
        num_heads: Stages = (3, 6, 12, 24),
        window_size: Size = (7, 7, 7),
        mlp_ratio: Positive = 4.0,
        merging: Literal["merging", "mergingv2"] = "merging",
        v2: bool = False,
    ):
        super().__init__()
        widths = [feature_size * 2**stage for stage in range(NUM_STAGES)]
        for width, heads in zip(widths, num_heads, strict=True):
            if width % heads:
                raise ConfigError(
                    "feature_size",
                    feature_size,
                    f"gives the stages widths {widths}, which num_heads = {list(num_heads)} do not divide",
                    "use a multiple of 12 with [3, 6, 12, 24]",
                    colon=False,
                )
        self.swinViT = SwinTransformer(
            in_channels,
            feature_size,
            window_size,
            patch,
            num_layers,
            num_heads,
            mlp_ratio,
            spatial_dims=3,
            downsample=merging,
            use_v2=v2,
        )
        self._num_layers, self._v2 = tuple(num_layers), v2
        self.channels: tuple[int, ...] = (feature_size, *(2 * width for width in widths))
        self.strides: tuple[Triple, ...] = tuple(
            triple(p * 2**i for p in patch) for i in range(NUM_STAGES + 1)
        )
        self.num_features = self.channels[-1]

    def layers(self) -> tuple[tuple[str, ...], ...]:
        """The embedding, then one layer per stage."""
        stages = []
        for stage, count in enumerate(self._num_layers, start=1):
            before = (f"swinViT.layers{stage}c.0",) if self._v2 else ()
            blocks = (f"swinViT.layers{stage}.0.blocks.{i}" for i in range(count))
            stages.append((*before, *blocks, f"swinViT.layers{stage}.0.downsample"))
        return (("swinViT.patch_embed",), *stages)

    def forward(self, x: Float[Tensor, "B C D H W"]) -> Features:
        """Features of ``[B, C, D, H, W]``, each axis a multiple of 16 patches.

        pooled ``[B, num_features]``, maps finest first.
        """
        maps = tuple(self.swinViT(x))
        return Features(global_average(maps[-1]), maps)
