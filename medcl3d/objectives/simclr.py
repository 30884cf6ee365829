"""SimCLR: one embedding per view, compared with all views of the global batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from medcl3d.config.field_types import Positive, PositiveInt
from medcl3d.core.batch import PairBatch
from medcl3d.core.embeddings import Embedded, Embeddings, Loss
from medcl3d.core.keys import Keys
from medcl3d.encoders.network import Network
from medcl3d.losses.contrastive import Denominator, denominator_kind
from medcl3d.objectives import OBJECTIVES
from medcl3d.objectives.contrast import contrast
from medcl3d.objectives.projector import HeadNorm, Projector
from medcl3d.objectives.relating import Relating


@OBJECTIVES.register("simclr")
class SimCLR(nn.Module):
    """Contrastive loss between pooled features of views.

    temperature   divides cosine similarities
    denominator   `all`: the anchor's positives and negatives; `own`: each positive itself and the anchor's
                  negatives
    decoupled     leave positives out of the denominator (DCL); this is a third denominator, so not with
                  `denominator: own`
    norm          of the head; `batch`, over the views of all ranks, is as published: with `layer` features
                  collapse more easily
    hidden_dim    width of the head between its layers
    out_dim       dimension of the embeddings
    num_layers    linear layers of the head

    Source: Chen et al., ICML 2020; decoupled: Yeh et al., ECCV 2022.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"positive", "negative", "budget"})
    decodes: ClassVar[bool] = False

    def __init__(
        self,
        network: Network,
        *,
        temperature: Positive = 0.1,
        denominator: Denominator = "all",
        decoupled: bool = False,
        norm: HeadNorm = "batch",
        hidden_dim: PositiveInt = 256,
        out_dim: PositiveInt = 128,
        num_layers: Annotated[int, Field(ge=1, le=8)] = 2,
    ):
        super().__init__()
        denominator_kind(denominator, decoupled, "simclr")  # refuses two at once
        self.dim, self.temperature, self.denominator, self.decoupled = (
            out_dim,
            temperature,
            denominator,
            decoupled,
        )
        self.projector = Projector(network.num_features, hidden_dim, out_dim, num_layers, norm)

    def embed(self, network: Network, batch: PairBatch) -> Embedded:
        """One unit vector per view, of all roles."""
        return self.embed_pooled([network(group.voxels).pooled for group in batch.groups], batch)

    def embed_pooled(self, pooled: Sequence[Float[Tensor, "_ F"]], batch: PairBatch) -> Embedded:
        """The embeddings from pooled features ``[N, F]`` of each role."""
        keys = Keys.cat(group.keys for group in batch.groups)
        return {"online": Embeddings(self.projector(torch.cat([*pooled])), keys)}

    def loss(self, embedded: Embedded, relating: Relating) -> Loss:
        """Compare each view with all views of the global batch."""
        return contrast(embedded["online"], relating, self.temperature, self.denominator, self.decoupled)
