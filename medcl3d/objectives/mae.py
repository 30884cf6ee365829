"""The control without pairs: hidden blocks are painted in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medcl3d.encoders.network import Network
from medcl3d.errors import ConfigError
from medcl3d.objectives import OBJECTIVES
from medcl3d.objectives.masking import at_size, features_of_seen, visible_blocks
from medcl3d.objectives.relating import Relating
from medcl3d.registry import Fraction, Size
from medcl3d.training.distributed import global_mean
from medcl3d.types import Embedded, Loss, PairBatch, Rows, triple


@OBJECTIVES.register("mae")
class MAE(nn.Module):
    """Squared error of hidden blocks, read from the decoder's map. Pairs say which crops are drawn, and no more.

    block         voxels of a block along each axis; a crop's axes are multiples of it, and it of a transformer's patch; of other
                  encoders' strides where hidden voxels are not to be seen in part
    share_hidden  of a crop's blocks
    per_block     compare with each block's voxels less their mean, divided by their deviation

    Convolutions see hidden blocks as 0 in every layer; a vision transformer's tokens of them are dropped, and one learned vector
    stands in their place before the decoder. Source: MAE (He et al., CVPR 2022), SparK (Tian et al., ICLR 2023).
    """

    uses: ClassVar[frozenset[str]] = frozenset()
    decodes: ClassVar[bool] = True
    dim = 0

    def __init__(self, network: Network, *, block: Size = (8, 8, 8), share_hidden: Fraction = 0.6, per_block: bool = False):
        super().__init__()
        if network.decoder is None:
            raise ConfigError("objective.mae: the network has no decoder to paint with; choose an encoder with feature maps")
        if not 0 < share_hidden < 1:
            raise ConfigError(f"objective.mae: share_hidden = {share_hidden}: something has to be hidden and something seen; 0.6 would do")
        self.block, self.share_hidden, self.per_block = triple(block), share_hidden, per_block
        drops = getattr(network.encoder, "drops_tokens", False)
        self.mask_token = nn.Parameter(0.02 * torch.randn(network.num_features)) if drops else None
        self.head = nn.Conv3d(network.decoder.out_channels, channels_of(network), 1)

    def embed(self, network: Network, batch: PairBatch) -> Embedded:
        """The mean squared error of each global view's hidden voxels, ``[N, 1]``."""
        voxels = batch.main.voxels
        if any(size % edge for size, edge in zip(voxels.shape[2:], self.block, strict=True)):
            raise ConfigError(
                f"objective.mae: block = {list(self.block)} does not tile views of {list(voxels.shape[2:])} voxels (data.patch_size); "
                "give sizes that divide it"
            )
        grid = triple(size // edge for size, edge in zip(voxels.shape[2:], self.block, strict=True))
        blocks = visible_blocks(batch.main.keys, grid, self.share_hidden)
        seen = at_size(blocks, tuple(voxels.shape[2:]))
        features = features_of_seen(network.encoder, voxels * seen, blocks)
        assert network.decoder is not None, "an objective that decodes has a decoder"
        decoded = network.decoder(voxels * seen, self.marked(features.maps, blocks))
        dtype = torch.promote_types(voxels.dtype, torch.float32)
        error = (self.head(decoded).to(dtype) - self.target(voxels.to(dtype))).square().mean(1, keepdim=True)
        hidden = (~seen).to(dtype)
        return {"online": Rows((error * hidden).flatten(1).sum(1, keepdim=True) / hidden.flatten(1).sum(1, keepdim=True), batch.main.keys)}

    def marked(self, maps: Sequence[Tensor], blocks: Tensor) -> Sequence[Tensor]:
        """Maps with one learned vector in the place of dropped tokens."""
        if self.mask_token is None:
            return maps
        return [m + ~at_size(blocks, tuple(m.shape[2:])) * self.mask_token.to(m.dtype)[:, None, None, None] for m in maps]

    def target(self, voxels: Tensor) -> Tensor:
        """What is to be painted: the voxels, or each block's own contrast."""
        if not self.per_block:
            return voxels
        mean = F.avg_pool3d(voxels, self.block)
        variance = F.avg_pool3d(voxels.square(), self.block) - mean.square()
        mean, deviation = (F.interpolate(x, size=voxels.shape[2:], mode="nearest") for x in (mean, (variance.clamp(min=0) + 1e-6).sqrt()))
        return (voxels - mean) / deviation

    def loss(self, embedded: Embedded, relating: Relating) -> Loss:
        """The mean over the views of all ranks."""
        error = embedded["online"].z
        value, mean = global_mean(error.sum(), torch.ones_like(error).sum())
        return Loss(value, {"loss": mean})


def channels_of(network: Network) -> int:
    """Channels of the volumes that a network takes."""
    first = next(module for module in network.encoder.modules() if isinstance(module, nn.Conv3d))
    return first.in_channels
