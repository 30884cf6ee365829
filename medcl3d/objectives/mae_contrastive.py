"""Reconstruction of masked blocks and a contrastive loss on whole views."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from medcl3d.config.field_types import Fraction, Positive, PositiveInt, Size
from medcl3d.core.batch import PairBatch
from medcl3d.core.embeddings import Embedded, Loss
from medcl3d.encoders.network import Network
from medcl3d.objectives import OBJECTIVES
from medcl3d.objectives.mae import MAE
from medcl3d.objectives.projector import HeadNorm
from medcl3d.objectives.relating import Relating
from medcl3d.objectives.simclr import SimCLR
from medcl3d.objectives.weighted import weighted


@OBJECTIVES.register(
    "mae_contrastive", renamed={"share_hidden": "mask_ratio", "per_block": "normalise_target"}
)
class MAEContrastive(nn.Module):
    """`mae_weight` times the loss of `mae` plus (1 - `mae_weight`) times that of `simclr` on unmasked views.

    mae_weight  weight of the reconstruction loss; the rest is that of the contrastive loss

    Masked blocks: fields as in `mae`; contrastive loss: fields as in `simclr`.
    Source: the sum as in CMAE (Huang et al., TPAMI 2024, eq. 5); here the contrastive loss is on unmasked
    views, with two passes through one network.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"positive", "negative", "budget"})
    decodes: ClassVar[bool] = True

    def __init__(
        self,
        network: Network,
        *,
        mae_weight: Fraction = 0.5,
        block: Size = (8, 8, 8),
        mask_ratio: Fraction = 0.6,
        normalise_target: bool = False,
        temperature: Positive = 0.1,
        norm: HeadNorm = "batch",
        hidden_dim: PositiveInt = 256,
        out_dim: PositiveInt = 128,
    ):
        super().__init__()
        self.mae_weight, self.dim, self.temperature = mae_weight, out_dim, temperature
        self.views = SimCLR(
            network, temperature=temperature, norm=norm, hidden_dim=hidden_dim, out_dim=out_dim
        )
        self.blocks = MAE(network, block=block, mask_ratio=mask_ratio, normalise_target=normalise_target)

    def embed(self, network: Network, batch: PairBatch) -> Embedded:
        """Unit vectors of unmasked views, and errors of masked ones."""
        pooled = [network.encoder(group.voxels).pooled for group in batch.groups]
        views = self.views.embed_pooled(pooled, batch)
        return {"views": views["online"], "blocks": self.blocks.embed(network, batch)["online"]}

    def loss(self, embedded: Embedded, relating: Relating) -> Loss:
        """The weighted sum."""
        return weighted(
            {
                "views": (1 - self.mae_weight, self.views.loss({"online": embedded["views"]}, relating)),
                "blocks": (self.mae_weight, self.blocks.loss({"online": embedded["blocks"]}, relating)),
            }
        )
