"""VICReg: invariance, variance and covariance of features."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from torch import nn

from medcl3d.config.field_types import NonNegative, PositiveInt
from medcl3d.core.batch import PairBatch
from medcl3d.core.embeddings import Embedded, Loss
from medcl3d.core.errors import DataError
from medcl3d.encoders.network import Network
from medcl3d.losses.pairs import vicreg
from medcl3d.objectives import OBJECTIVES
from medcl3d.objectives.global_pairs import global_pairs, project
from medcl3d.objectives.projector import HeadNorm, Projector
from medcl3d.objectives.relating import Relating


@OBJECTIVES.register("vicreg")
class VICReg(nn.Module):
    """Distance of first views and partners, drawn from P; variance and covariance of features.

    invariance, variance, covariance  weights of the three terms
    norm        normalisation between the layers of the head
    out_dim     number of features

    Other fields as in `simclr`.
    The first view is global; its partner may be local (`multi_crop`), since both have a gradient. M has no
    effect. Statistics are over all ranks. Source: Bardes et al., ICLR 2022, eq. 6.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"positive"})
    ignores_queue: ClassVar[bool] = True
    decodes: ClassVar[bool] = False

    def __init__(
        self,
        network: Network,
        *,
        invariance: NonNegative = 25.0,
        variance: NonNegative = 25.0,
        covariance: NonNegative = 1.0,
        norm: HeadNorm = "batch",
        hidden_dim: PositiveInt = 512,
        out_dim: PositiveInt = 128,
        num_layers: Annotated[int, Field(ge=1, le=8)] = 3,
    ):
        super().__init__()
        self.dim, self.weights = out_dim, (invariance, variance, covariance)
        self.projector = Projector(network.num_features, hidden_dim, out_dim, num_layers, norm, unit=False)

    def embed(self, network: Network, batch: PairBatch) -> Embedded:
        """One embedding per view, of all roles."""
        return project(network, self.projector, batch)

    def loss(self, embedded: Embedded, relating: Relating) -> Loss:
        """The loss of the global batch, on every rank. DataError if fewer than two have a positive."""
        pairs = global_pairs(embedded["online"], relating)
        if len(pairs.first) < 2:
            for one in pairs.required:
                one.check()
            raise DataError(
                "objective.vicreg",
                f"{len(pairs.first)} samples of this batch have a positive, but variance needs two",
                "draw more samples per step",
            )
        value = vicreg(pairs.first, pairs.second, pairs.weight, *self.weights)
        return Loss(value, {"loss": value.detach()} | pairs.metrics, pairs.required)
