"""Barlow Twins: invariant and decorrelated features."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from torch import nn

from medcl3d.config.field_types import NonNegative, PositiveInt
from medcl3d.core.batch import PairBatch
from medcl3d.core.embeddings import Embedded, Loss
from medcl3d.encoders.network import Network
from medcl3d.losses.pairs import barlow_twins
from medcl3d.objectives import OBJECTIVES
from medcl3d.objectives.global_pairs import global_pairs, project
from medcl3d.objectives.projector import HeadNorm, Projector
from medcl3d.objectives.relating import Relating


@OBJECTIVES.register("barlow_twins")
class BarlowTwins(nn.Module):
    """The cross-correlation of features of first views and partners, drawn from P, approaches the identity.

    redundancy  weight of the correlations between different features
    out_dim     number of features; with more features than samples in a batch, many correlations are noise
    norm        normalisation between the layers of the head

    Other fields as in `simclr`.
    The first view is global; its partner may be local (`multi_crop`), since both have a gradient. M has no
    effect. Statistics are over all ranks. Source: Zbontar et al., ICML 2021, eq. 1.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"positive"})
    ignores_queue: ClassVar[bool] = True
    decodes: ClassVar[bool] = False

    def __init__(
        self,
        network: Network,
        *,
        redundancy: NonNegative = 0.0051,
        norm: HeadNorm = "batch",
        hidden_dim: PositiveInt = 512,
        out_dim: PositiveInt = 128,
        num_layers: Annotated[int, Field(ge=1, le=8)] = 3,
    ):
        super().__init__()
        self.dim, self.redundancy = out_dim, redundancy
        self.projector = Projector(network.num_features, hidden_dim, out_dim, num_layers, norm, unit=False)

    def embed(self, network: Network, batch: PairBatch) -> Embedded:
        """One embedding per view, of all roles."""
        return project(network, self.projector, batch)

    def loss(self, embedded: Embedded, relating: Relating) -> Loss:
        """The loss of the global batch, on every rank."""
        pairs = global_pairs(embedded["online"], relating)
        value = barlow_twins(pairs.first, pairs.second, pairs.weight, self.redundancy)
        return Loss(value, {"loss": value.detach()} | pairs.metrics, pairs.required)
