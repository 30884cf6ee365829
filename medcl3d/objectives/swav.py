"""SwAV: prediction of a partner's assignment to prototypes, with equal use of all prototypes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float, Int, Int64
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from medcl3d.config.field_types import NonNegativeInt, Positive, PositiveInt
from medcl3d.core.batch import PairBatch
from medcl3d.core.embeddings import Embedded, Embeddings, Loss
from medcl3d.core.keys import Keys
from medcl3d.encoders.network import Network
from medcl3d.losses.clusters import cross_entropy_sum, scores_of, sinkhorn
from medcl3d.objectives import OBJECTIVES
from medcl3d.objectives.partners import mean_loss, relate_to_all
from medcl3d.objectives.projector import HeadNorm, Projector
from medcl3d.objectives.relating import GlobalViews, Relating, append

NUM_GLOBAL = 2  # views of a sample that get codes, each with its own queue


@OBJECTIVES.register("swav", renamed={"sharpness": "epsilon"})
class SwAV(nn.Module):
    """Cross-entropy of a view's softmax over prototypes and a global view's code, weighted by P.

    Codes assign the embeddings of all ranks equally to prototypes (Sinkhorn), separately for each view of a
    sample, together with those of a queue, if there is one. M has no effect.

    num_prototypes  vectors to which items are assigned
    temperature     of the prediction
    epsilon         entropy regularisation of the codes: smaller values are closer to one prototype per item
    iterations      of Sinkhorn
    queue_size      embeddings of earlier batches included in Sinkhorn; needed if a batch has fewer items than
                    prototypes
    freeze_steps    number of first steps in which prototypes do not change
    norm            normalisation between the layers of the head

    Other fields as in `simclr`.
    Source: Caron et al., NeurIPS 2020, eq. 1 to 5.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"positive"})
    ignores_queue: ClassVar[bool] = True
    decodes: ClassVar[bool] = False
    kept: Float[Tensor, "2 Q E"]
    count: Int64[Tensor, 2]

    def __init__(
        self,
        network: Network,
        *,
        num_prototypes: PositiveInt = 64,
        temperature: Positive = 0.1,
        epsilon: Positive = 0.05,
        iterations: PositiveInt = 3,
        queue_size: NonNegativeInt = 0,
        freeze_steps: NonNegativeInt = 0,
        norm: HeadNorm = "batch",
        hidden_dim: PositiveInt = 256,
        out_dim: PositiveInt = 128,
        num_layers: Annotated[int, Field(ge=1, le=8)] = 2,
    ):
        super().__init__()
        self.dim, self.temperature, self.epsilon, self.iterations = (
            out_dim,
            temperature,
            epsilon,
            iterations,
        )
        self.freeze_steps, self.frozen = freeze_steps, freeze_steps > 0
        self.projector = Projector(network.num_features, hidden_dim, out_dim, num_layers, norm)
        self.prototypes = nn.Linear(out_dim, num_prototypes, bias=False)
        self.register_buffer("kept", torch.zeros(NUM_GLOBAL, queue_size, out_dim))
        self.register_buffer("count", torch.zeros(NUM_GLOBAL, dtype=torch.int64))
        self._full: set[int] = set()
        self.register_load_state_dict_post_hook(SwAV._loaded)  # type: ignore[no-untyped-call]

    @staticmethod
    def _loaded(module: nn.Module, _: object) -> None:
        assert isinstance(module, SwAV)
        module._full.clear()

    def before_step(self, step: int, steps: int) -> None:
        """Update the freezing of the prototypes."""
        self.frozen = step < self.freeze_steps

    def embed(self, network: Network, batch: PairBatch) -> Embedded:
        """Unit vectors of all views, and those of the global ones without gradient."""
        z = self.projector(torch.cat([network(group.voxels).pooled for group in batch.groups]))
        online = Embeddings(z, Keys.cat(group.keys for group in batch.groups))
        return {"online": online, "large": Embeddings(z[: len(batch.main.keys)].detach(), batch.main.keys)}

    def loss(self, embedded: Embedded, relating: Relating) -> Loss:
        """The mean over pairs of a view and a global view's code, weighted by P."""
        online, large = embedded["online"], embedded["large"]
        related = relate_to_all(online, large, relating)
        own = related.targets[: len(related.keys)]
        codes = self._codes(own, related.keys.view, relating.global_views)
        weight = self.prototypes.weight
        weight = weight * 0 + weight.detach() if self.frozen else weight  # a gradient of 0, which DDP needs
        log_p = F.log_softmax(scores_of(online.z, weight) / self.temperature, dim=1)
        positive = related.relation.positive[:, : len(codes)].to(log_p.dtype)
        return mean_loss(cross_entropy_sum(log_p, codes, positive), positive.sum(), related.numbers)

    @torch.no_grad()
    def _codes(
        self, z: Float[Tensor, "M E"], view: Int[Tensor, " M"], views: GlobalViews | None
    ) -> Float[Tensor, "M K"]:
        """Codes ``Float[M, K]`` of all ranks' global views ``[M, D]``, separately for each view number.

        Rows are sorted by sample, then by view. views: of this rank's batch, None to read them from `view`.
        """
        codes = z.new_zeros(len(z), self.prototypes.out_features)
        for number, own in _rows_of_views(view, views):
            queue = number % NUM_GLOBAL
            embeddings = torch.cat([z[own], self.kept[queue, : self._filled(queue)].to(z.dtype)])
            scores = scores_of(embeddings, self.prototypes.weight)
            codes[own] = sinkhorn(scores, self.epsilon, self.iterations)[: len(z[own])]
            append(self.count[queue], torch.isfinite(z[own]).all(1), (self.kept[queue], z[own]))
        return codes

    def _filled(self, queue: int) -> int:
        """The number of embeddings in a queue: once it is full, it stays full."""
        size = self.kept.shape[1]
        if queue not in self._full:
            filled = min(int(self.count[queue]), size) if size else 0
            if filled < size or not size:
                return filled
            self._full.add(queue)
        return size


def _rows_of_views(
    view: Int[Tensor, " M"], views: GlobalViews | None
) -> Iterator[tuple[int, slice | Int[Tensor, " _"]]]:
    """The view numbers, and the rows of each."""
    if views is None:
        for number in torch.unique(view).tolist():
            yield number, (view == number).nonzero().flatten()
    else:
        for first, number in enumerate(views.numbers):
            yield number, slice(first, None, len(views.numbers))
