"""The contrastive loss as a module on plain tensors, for your own training loop."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from medcl3d.core.errors import ConfigError, DataError
from medcl3d.core.relation import Relation
from medcl3d.losses.budget import BudgetedPairs
from medcl3d.losses.contrastive import Denominator, Tile, contrastive_sum, denominator_kind


class ContrastiveLoss(nn.Module):
    """Weighted contrastive loss of embeddings under a relation.

        loss = ContrastiveLoss(temperature=0.1)
        relation = strategy.relate(keys, keys, None)
        value = loss(z, relation.positive, relation.negative)

    temperature  divides cosine similarities
    denominator  `all`: D_i = sum_k (P_ik + M_ik) e^s_ik; `own`: D_ij = (1 - M_ij) e^s_ij + sum_k M_ik e^s_ik
    decoupled    D_i = sum_k M_ik e^s_ik (DCL), not with `own`
    budget_weight  of the mean of max(0, 1 - cos - budget)^2 over pairs with a budget

    The loss of an anchor is L_i = - sum_j (P_ij / sum_k P_ik) log(e^s_ij / D); the result is the mean of L_i
    with the weights a_i = min(1, sum_j P_ij). It is computed over the items of this process: under
    DistributedDataParallel, gather embeddings first, or use `medcl3d.pretrain`, which does.

    ConfigError: a field is wrong.
    Source: NT-Xent (Chen 2020, eq. 1), SupCon L_out (Khosla 2020, eq. 2), y-Aware (Dufumier 2021, eq. 3), DCL
    (Yeh 2022, eq. 6).
    """

    def __init__(
        self,
        temperature: float = 0.1,
        denominator: Denominator = "all",
        decoupled: bool = False,
        budget_weight: float = 1.0,
    ):
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise ConfigError(
                "temperature",
                temperature,
                "is not above 0",
                "use for example 0.1",
                owner="ContrastiveLoss",
                colon=False,
            )
        denominator_kind(denominator, decoupled, "ContrastiveLoss")
        self.temperature, self.denominator, self.decoupled = temperature, denominator, decoupled
        self.budget_weight = budget_weight

    def forward(
        self,  # shapes are checked below, with a message for users
        z: Float[Tensor, ...],
        positive: Shaped[Tensor, ...],
        negative: Shaped[Tensor, ...] | None = None,
        budget: Shaped[Tensor, ...] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss, a scalar in float32 or better.

        z         ``Float[N, D]`` embeddings of any length; they are normalised here
        positive  ``[N, N]`` bool, or float weights P in [0, 1]
        negative  ``[N, N]`` bool, or float weights M >= 0; constants of the loss (default: 1 - positive)
        budget    ``[N, N]`` cosine distance that a pair may have, NaN for none (default: no pair has one); as
                  `Relation.budget` of a strategy

        The diagonals are ignored: no item is related to itself. Items without a positive are not anchors, but
        still repel. ValueError: shapes or weights are wrong. DataError: no item has a positive.
        """
        count = len(z)
        given = {"positive": positive, "negative": negative, "budget": budget}
        weights = {name: weight for name, weight in given.items() if weight is not None}
        if z.ndim != 2:
            raise ValueError(f"z has shape {tuple(z.shape)}; it must be [N, D]")
        for name, weight in weights.items():
            if weight.shape != (count, count):
                raise ValueError(
                    f"{name} has shape {tuple(weight.shape)}; for z of {count} items it must be [{count}, "
                    f"{count}]"
                )
        if z.is_floating_point():  # in half precision, normalisation loses digits
            z = z.to(torch.promote_types(z.dtype, torch.float32))
        with torch.autocast(z.device.type, enabled=False):
            z = F.normalize(z, dim=1)
        attract, repel = _weights(positive, negative, z)

        def tile_of(rows: slice, similarity: Tensor) -> Tile:
            return Tile(Relation(attract[rows], repel[rows]))

        total = contrastive_sum(
            z, None, tile_of, self.temperature, denominator=self.denominator, decoupled=self.decoupled
        )
        if not bool(total.weight > 0):
            raise DataError(
                "no item has a positive, so the loss is not defined; put at least two items that attract "
                "into a batch"
            )
        loss = total.loss / total.weight
        if budget is None:
            return loss
        own = torch.eye(count, dtype=torch.bool, device=z.device)
        of_pairs = Relation(attract, repel, budget.detach().to(z).masked_fill(own, torch.nan))
        excess = BudgetedPairs([(slice(0, count), Tile(of_pairs))]).sum(z, z)
        return loss + self.budget_weight * excess.loss / excess.weight.clamp(min=1)

    def two_views(self, first: Float[Tensor, "N E"], second: Float[Tensor, "N E"]) -> Float[Tensor, ""]:
        """NT-Xent of two views, ``[N, D]`` each: row i attracts row i of the other view; all others repel."""
        count = len(first)
        partner = torch.arange(2 * count, device=first.device).roll(count)
        positive = F.one_hot(partner, 2 * count).bool()
        loss: Tensor = self(torch.cat([first, second]), positive)
        return loss

    def extra_repr(self) -> str:
        """Fields, as PyTorch prints them."""
        return f"temperature={self.temperature}, denominator={self.denominator!r}, decoupled={self.decoupled}"


def _weights(
    positive: Shaped[Tensor, "N N"], negative: Shaped[Tensor, "N N"] | None, z: Float[Tensor, "N E"]
) -> tuple[Float[Tensor, "N N"], Float[Tensor, "N N"]]:
    """P and M in the precision of `z`, ``[N, N]``, zero on the diagonals. ValueError: out of range."""
    attract = positive.detach().to(z.device, z.dtype)
    repel = 1 - attract if negative is None else negative.detach().to(z.device, z.dtype)
    if not bool(((attract >= 0) & (attract <= 1)).all()):
        raise ValueError("positive must be within [0, 1] everywhere")
    if not bool(((repel >= 0) & (repel < torch.inf)).all()):
        raise ValueError("negative must be finite and not below 0 everywhere")
    other = 1 - torch.eye(len(z), device=z.device, dtype=z.dtype)
    return attract * other, repel * other
