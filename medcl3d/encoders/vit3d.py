"""A 3-D vision transformer of MONAI's blocks, for crops of any size that is a multiple of its patch."""

from __future__ import annotations

from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from monai.networks.blocks.transformerblock import TransformerBlock
from torch import Tensor, nn

from medcl3d.config.field_types import NonNegativeInt, Positive, PositiveInt, Size
from medcl3d.core.embeddings import Features
from medcl3d.core.errors import ConfigError
from medcl3d.core.geometry import Triple, triple
from medcl3d.encoders import ENCODERS

POSITIONS_DIVIDE = 6  # sine and cosine for each of three axes


@ENCODERS.register("vit3d")
class ViT3d(nn.Module):
    """Attention between tokens of patches; `pooled` is the mean of the last layer's normalised tokens.

    patch        voxels of a token along each axis; fewer along an axis of thick slices
    hidden_size  width of a token, divisible by `num_heads` and by 6
    num_layers, num_heads, mlp_ratio    of the transformer: 12 layers of width 192 and 3 heads are ViT-Ti, of
                 384 and 6 ViT-S, of 768 and 12 ViT-B
    num_registers    learned tokens without a position, which take part in attention and are not in the
                     output:
                 they hold global information that a transformer otherwise stores in tokens of empty patches

    Position embeddings are fixed sines and cosines of a token's index in the grid, so that the network
    accepts crops of another size than in pretraining without interpolation. There is one map, at the stride
    of the patch: a decoder upsamples it to full resolution, with the input as skip connection.
    Tokens of masked blocks can be dropped before the first layer, which also saves their time and memory.
    Source: Dosovitskiy et al. 2021, ViT; Touvron et al. 2021, DeiT, for Ti and S; Chen et al. 2021, MoCo v3,
    for positions that are fixed; Darcet et al. 2024, Vision Transformers Need Registers; He et al. 2022, MAE,
    for dropped tokens.
    """

    drops_tokens: ClassVar[bool] = True
    embeds_patches: ClassVar[bool] = True

    def __init__(
        self,
        in_channels: int,
        *,
        patch: Size = (8, 8, 8),
        hidden_size: PositiveInt = 192,
        num_layers: PositiveInt = 6,
        num_heads: PositiveInt = 3,
        mlp_ratio: Positive = 4.0,
        num_registers: NonNegativeInt = 0,
    ):
        super().__init__()
        for name, divisor in (("num_heads", num_heads), ("the axes' sines and cosines", POSITIONS_DIVIDE)):
            if hidden_size % divisor:
                problem, remedy = f"is not divisible by {name}, {divisor}", "use a multiple"
                raise ConfigError("hidden_size", hidden_size, problem, remedy, colon=False)
        self.patch_embedding = nn.Conv3d(in_channels, hidden_size, kernel_size=patch, stride=patch)
        self.blocks = nn.ModuleList(
            _block(hidden_size, int(hidden_size * mlp_ratio), num_heads) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.registers = nn.Parameter(torch.empty(num_registers, hidden_size)) if num_registers else None
        self.channels: tuple[int, ...] = (hidden_size,)
        self.strides: tuple[Triple, ...] = (triple(patch),)
        self.num_features = hidden_size
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.registers is not None:
            nn.init.trunc_normal_(self.registers, std=0.02)

    def layers(self) -> tuple[tuple[str, ...], ...]:
        """Embedding and registers, then one layer per block; the last norm is in no layer, as in BEiT."""
        first = ("patch_embedding",) if self.registers is None else ("patch_embedding", "registers")
        return (first, *((f"blocks.{i}",) for i in range(len(self.blocks))))

    def forward(
        self, x: Float[Tensor, "B C D H W"], visible: Bool[Tensor, "B 1 d h w"] | None = None
    ) -> Features:
        """Features of ``[B, C, D, H, W]``, axes multiples of the patch: pooled ``[B, hidden_size]``, one map.

        visible  ``Bool[B, 1, d, h, w]``, one value per token, equally many True in each crop. Tokens with
                 False are dropped: the map is 0 there, and `pooled` is the mean of the others
        """
        grid = self.patch_embedding(x)
        depth, height, width = grid.shape[2:]
        tokens = rearrange(grid, "b c d h w -> b (d h w) c")
        tokens = tokens + _positions_on((depth, height, width), tokens.shape[2], tokens.dtype, tokens.device)
        kept = None if visible is None else _kept(visible).unsqueeze(2).expand(-1, -1, tokens.shape[2])
        if kept is not None:
            tokens = tokens.gather(1, kept)
        if self.registers is not None:
            tokens = torch.cat((self.registers.to(tokens).expand(tokens.shape[0], -1, -1), tokens), dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens[:, 0 if self.registers is None else len(self.registers) :])
        pooled = tokens.mean(1, dtype=torch.promote_types(tokens.dtype, torch.float32))
        if kept is not None:
            empty = tokens.new_zeros(tokens.shape[0], depth * height * width, tokens.shape[2])
            tokens = empty.scatter(1, kept, tokens)
        return Features(pooled, (rearrange(tokens, "b (d h w) c -> b c d h w", d=depth, h=height),))


def _kept(visible: Bool[Tensor, "B 1 d h w"]) -> Int[Tensor, "B _"]:
    """``Int[B, n]``: indices of the visible tokens, in order."""
    flat = visible.flatten(1)
    counts = flat.sum(1)
    fewest, most = torch.stack([counts.min(), counts.max()]).tolist()
    if fewest != most:
        raise ConfigError(
            problem=f"crops of a batch keep {fewest} to {most} tokens, but need equally many",
            remedy="use masked blocks that are multiples of the patch (objective: block, encoder.vit3d: "
            "patch)",
            place="encoder.vit3d",
        )
    return torch.argsort((~flat).to(torch.int8), dim=1, stable=True)[:, :most]


def _block(hidden_size: int, mlp_dim: int, num_heads: int) -> TransformerBlock:
    block = TransformerBlock(hidden_size, mlp_dim, num_heads, qkv_bias=True, use_flash_attention=True)
    # Only cross-attention would use this norm, and DistributedDataParallel fails on a parameter without a
    # gradient.
    block.norm_cross_attn = nn.Identity()  # type: ignore[assignment]
    return block


_POSITIONS: dict[tuple[Triple, int, torch.dtype, torch.device], Tensor] = {}


def _positions_on(
    grid: Triple, hidden_size: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "_ _"]:
    """`positions` in a dtype and on a device, where they stay."""
    key = grid, hidden_size, dtype, device
    # Tensors without values (on `meta`, or of another class in an estimate of memory) are not kept.
    is_fake = type(torch.empty(0)) is not Tensor and not torch.compiler.is_exporting()
    without_values = is_fake or device.type == "meta"
    found = None if without_values else _POSITIONS.get(key)
    if found is None:
        found = positions(grid, hidden_size).to(device, dtype)
        if type(found) is Tensor and not without_values and not torch.compiler.is_compiling():
            _POSITIONS[key] = found
    return found


def positions(grid: Triple, hidden_size: int) -> Float[Tensor, "_ _"]:
    """``Float[tokens, hidden_size]``: sines and cosines of each token's index along each axis, depth slowest.

    Source: Vaswani et al. 2017, section 3.5, for each axis.
    """
    half = hidden_size // POSITIONS_DIVIDE
    frequency = 10_000.0 ** -(torch.arange(half) / half)
    index = torch.cartesian_prod(*(torch.arange(float(n)) for n in grid))
    angle = rearrange(index[:, :, None] * frequency, "tokens xyz f -> tokens (xyz f)")
    return torch.cat((angle.sin(), angle.cos()), dim=1)
