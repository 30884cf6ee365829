"""Metrics logged for every strategy: relation counts, alignment, uniformity, and feature collapse."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from medcl3d.core.relation import Relation
from medcl3d.distributed.collectives import all_sum, world_size
from medcl3d.losses.contrastive import Tile

# Singular values of more embeddings cost more time and change the effective rank little.
RANK_ROWS = 512


class Tally:
    """Sums over the pairs of one rank, accumulated tile by tile to limit memory."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    @torch.no_grad()
    def add(
        self,
        tile: Tile,
        similarity: Float[Tensor, "R M"] | None = None,
        selves: Int[Tensor, ""] | None = None,
    ) -> None:
        """Add a tile ``[R, M]``. Alignment and uniformity need similarities.

        selves: number of rows that are also columns (default: all). An item is never related to itself.
        """
        positive, negative, columns = tile.relation.positive, tile.relation.negative, tile.columns
        width = positive.shape[1] if similarity is None or columns is None else similarity.shape[1]
        rows, pairs = (
            positive.new_full((), float(n), dtype=torch.float64)
            for n in (len(positive), len(positive) * width)
        )
        others = pairs - positive.numel()  # these repel with M = 1
        selves = rows if selves is None else selves.to(rows)
        ignored = (
            (positive == 0) & (negative == 0)
        ).sum() - selves  # items paired with themselves do not count
        aligned, spread, repelled = rows * 0, rows * 0, (negative > 0).sum() + others
        if similarity is not None:
            distance = 2 - 2 * similarity.to(positive.dtype)
            near = distance if columns is None else distance[:, columns]
            aligned = (positive * near).sum()
            repulsion = near.mul(-2).exp_().mul_(negative > 0)
            if columns is not None:
                near, repulsion = repulsion, distance.mul_(-2).exp_()
                repulsion[:, columns] = near
            spread = repulsion.sum()
        sums = [
            rows,
            pairs,
            positive.sum(),
            negative.sum() + others,
            (positive.sum(1) == 0).sum(),
            ignored,
            aligned,
            spread,
            repelled,
            selves,
        ]
        added = torch.stack([part.double() for part in sums])
        self._sums = added if self._sums is None else self._sums + added

    def total(self, like: Tensor, total: Callable[[Tensor], Tensor]) -> Float64[Tensor, 10]:
        """``Float64[10]``, summed over ranks; a rank without rows contributes zeros."""
        return total(like.new_zeros(10, dtype=torch.float64) if self._sums is None else self._sums)


@torch.no_grad()
def own_sums(z: Float[Tensor, "N E"], tally: Tally) -> Float64[Tensor, 12]:
    """What `diagnose` needs of this rank, to be summed over ranks: `tally`, effective rank, deviation.

    z: ``[N, D]`` unit vectors, whose pairs `tally` has summed
    """
    features = torch.stack([effective_rank(z).double(), z.std(0).mean().double()])
    return torch.cat([tally.total(z, lambda own: own), features])


def diagnose(sums: Float64[Tensor, 12]) -> dict[str, Float64[Tensor, ""]]:
    """Metrics of one step over all ranks, from the `own_sums` of all of them.

    alignment and uniformity: Wang and Isola, ICML 2020 (alpha = 2, t = 2; alignment weighted by P).
    effective_rank: RankMe, Garrido et al., ICML 2023 (on at most 512 embeddings per rank, mean over ranks).
    """
    p, aligned, uniform, repelled, rank, spread = (sums[i] for i in (2, 6, 7, 8, 10, 11))
    return {
        **_counts(sums),
        "alignment": aligned / p,
        "uniformity": (uniform / repelled).log(),
        "effective_rank": rank / world_size(),
        "feature_std": spread / world_size(),
    }


@torch.no_grad()
def counts(relation: Relation, total: Callable[[Tensor], Tensor] = all_sum) -> dict[str, Float[Tensor, ""]]:
    """Counts of attracting, repelling and ignored pairs.

    `total` sums over the participating ranks. The default sums over all ranks, so all ranks must call this
    function.
    """
    tally = Tally()
    tally.add(Tile(relation))
    return _counts(tally.total(relation.positive, total))


def _counts(sums: Float64[Tensor, 10]) -> dict[str, Float64[Tensor, ""]]:
    n, nm, p, m, without_positive, ignored = sums[:6].unbind()
    selves = sums[9]
    return {
        "positives_per_anchor": p / n,
        "anchors_without_positive": without_positive,
        "effective_negatives": m / n,
        "fraction_ignored": ignored / (nm - selves).clamp(min=1),
        "mean_positive": p / nm,
        "mean_negative": m / nm,
    }


def effective_rank(z: Float[Tensor, "N E"]) -> Float[Tensor, ""]:
    """Exponential of the entropy of the normalised singular values of ``[N, D]``: from 1 (collapsed) to D.

    NaN if an embedding is not finite: training then reports the divergence.
    """
    rows = z[:RANK_ROWS].float()
    if not torch.isfinite(rows).all():
        return rows.new_full((), float("nan"))
    values = torch.linalg.svdvals(rows)
    share = values / values.sum().clamp(min=1e-12) + 1e-7
    return torch.exp(-(share * share.log()).sum())


class Watch:
    """Warnings about logged metrics, each given once per run.

    Anchors without a positive, which do not contribute to the loss. Fewer than one effective negative per
    anchor, so that little prevents collapse. Collapse: an effective rank below 1.5 in three logged rows. A
    constant loss.
    """

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=5)
        self._ranks: deque[float] = deque(maxlen=3)
        self._given: set[str] = set()

    def look(self, metrics: Mapping[str, float]) -> list[str]:
        """New warnings after a logged row."""
        self._losses.append(metrics.get("loss", float("nan")))
        self._ranks.append(metrics.get("effective_rank", float("inf")))
        without_positive = metrics.get("anchors_without_positive", 0.0)
        negatives = metrics.get("effective_negatives", float("inf"))
        steady = len(self._losses) == 5 and max(self._losses) - min(self._losses) <= 1e-6 * abs(
            self._losses[0]
        )
        collapsed = len(self._ranks) == 3 and max(self._ranks) < 1.5
        found = {
            "positives": f"{without_positive:g} anchors of this batch have no positive and do not "
            "contribute to "
            "the loss; draw more samples per step, or raise `group_size` if the strategy has that field"
            if without_positive
            else "",
            "negatives": f"{negatives:.2g} effective negatives per anchor: little prevents collapse; draw "
            "more samples per step, or exclude fewer pairs"
            if negatives < 1
            else "",
            "collapse": f"features have collapsed to one direction (effective rank {self._ranks[-1]:.2f} "
            "over "
            "the last logged steps), or training has not progressed yet; raise train.warmup_steps or lower "
            "train.lr"
            if collapsed
            else "",
            "steady": "the loss has not changed over the last logged steps; check that train.lr is not "
            "too low "
            "and that the views differ"
            if steady
            else "",
        }
        new = {name: text for name, text in found.items() if text and name not in self._given}
        self._given |= set(new)
        return list(new.values())
