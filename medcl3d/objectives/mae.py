"""Masked autoencoder: a control that reconstructs masked blocks without using pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from medcl3d.config.field_types import Fraction, Size
from medcl3d.core.batch import PairBatch
from medcl3d.core.embeddings import Embedded, Embeddings, Loss
from medcl3d.core.errors import ConfigError
from medcl3d.core.geometry import triple
from medcl3d.distributed.collectives import global_mean
from medcl3d.encoders import drops_tokens
from medcl3d.encoders.network import Network
from medcl3d.objectives import OBJECTIVES
from medcl3d.objectives.masking import at_size, masked_features, visible_blocks
from medcl3d.objectives.relating import Relating


@OBJECTIVES.register("mae", renamed={"share_hidden": "mask_ratio", "per_block": "normalise_target"})
class MAE(nn.Module):
    """Squared error of masked blocks, reconstructed by the decoder. The strategy only draws the crops.

    block             voxels of a block along each axis; a crop's axes are multiples of it, and it is a
                      multiple of a transformer's patch; use a multiple of other encoders' strides to avoid
                      partly masked positions
    mask_ratio        fraction of a crop's blocks that are masked
    normalise_target  subtract each block's mean from the target, and divide by its standard deviation

    Convolutions output 0 in masked blocks in every layer; a vision transformer drops the masked tokens, and
    one learned mask token replaces them before the decoder. Source: MAE (He et al., CVPR 2022), SparK (Tian
    et al., ICLR 2023).
    """

    uses: ClassVar[frozenset[str]] = frozenset()
    decodes: ClassVar[bool] = True
    dim = 0

    def __init__(
        self,
        network: Network,
        *,
        block: Size = (8, 8, 8),
        mask_ratio: Fraction = 0.6,
        normalise_target: bool = False,
    ):
        super().__init__()
        if network.decoder is None:
            raise ConfigError(
                problem="the network has no decoder to reconstruct with",
                remedy="choose an encoder with feature maps",
            )
        if not 0 < mask_ratio < 1:
            raise ConfigError(
                "mask_ratio",
                mask_ratio,
                "is not between 0 and 1, both excluded",
                "use 0.6, for example",
                colon=False,
            )
        self.block, self.mask_ratio, self.normalise_target = triple(block), mask_ratio, normalise_target
        drops = drops_tokens(network.encoder)
        self.mask_token = nn.Parameter(0.02 * torch.randn(network.num_features)) if drops else None
        self.head = nn.Conv3d(network.decoder.out_channels, channels_of(network), 1)

    def embed(self, network: Network, batch: PairBatch) -> Embedded:
        """The mean squared error of each global view's masked voxels, ``[N, 1]``."""
        voxels = batch.main.voxels
        if any(size % edge for size, edge in zip(voxels.shape[2:], self.block, strict=True)):
            raise ConfigError(
                "block",
                list(self.block),
                f"does not divide views of {list(voxels.shape[2:])} voxels (data.patch_size)",
                "use sizes that divide it",
                owner="objective.mae",
                colon=False,
            )
        grid = triple(size // edge for size, edge in zip(voxels.shape[2:], self.block, strict=True))
        blocks = visible_blocks(batch.main.keys, grid, self.mask_ratio)
        visible = at_size(blocks, tuple(voxels.shape[2:]))
        features = masked_features(network.encoder, voxels * visible, blocks)
        assert network.decoder is not None, "an objective that decodes has a decoder"
        decoded = network.decoder(voxels * visible, self.with_mask_token(features.maps, blocks))
        dtype = torch.promote_types(voxels.dtype, torch.float32)
        error = (self.head(decoded).to(dtype) - self.target(voxels.to(dtype))).square().mean(1, keepdim=True)
        masked = (~visible).to(dtype)
        mean = (error * masked).flatten(1).sum(1, keepdim=True) / masked.flatten(1).sum(1, keepdim=True)
        return {"online": Embeddings(mean, batch.main.keys)}

    def with_mask_token(
        self, maps: Sequence[Float[Tensor, "N _ _ _ _"]], blocks: Bool[Tensor, "N 1 d h w"]
    ) -> Sequence[Float[Tensor, "N _ _ _ _"]]:
        """Maps with the mask token at the positions of dropped tokens."""
        if self.mask_token is None:
            return maps
        token = self.mask_token[:, None, None, None]
        return [m + ~at_size(blocks, tuple(m.shape[2:])) * token.to(m.dtype) for m in maps]

    def target(self, voxels: Float[Tensor, "N C D H W"]) -> Float[Tensor, "N C D H W"]:
        """The target of the reconstruction: the voxels, or each block normalised."""
        if not self.normalise_target:
            return voxels
        mean = F.avg_pool3d(voxels, self.block)
        variance = F.avg_pool3d(voxels.square(), self.block) - mean.square()
        deviation = (variance.clamp(min=0) + 1e-6).sqrt()
        mean, deviation = (F.interpolate(x, size=voxels.shape[2:], mode="nearest") for x in (mean, deviation))
        return (voxels - mean) / deviation

    def loss(self, embedded: Embedded, relating: Relating) -> Loss:
        """The mean over the views of all ranks."""
        error = embedded["online"].z
        value, mean = global_mean(error.sum(), torch.ones_like(error).sum())
        return Loss(value, {"loss": mean})


def channels_of(network: Network) -> int:
    """Input channels of a network."""
    first = next(module for module in network.encoder.modules() if isinstance(module, nn.Conv3d))
    return first.in_channels
