"""What is logged of every step, whatever the strategy: who attracts whom, and whether features collapse."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from medcl3d.losses.contrastive import Tile
from medcl3d.training.distributed import all_mean, all_sum
from medcl3d.types import Relation

# Singular values of more rows cost more than they tell.
RANK_ROWS = 512


class Tally:
    """Sums over the pairs of one rank, tile after tile, so that no number needs all of them at once."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    @torch.no_grad()
    def add(self, tile: Tile, similarity: Tensor | None = None, selves: Tensor | None = None) -> None:
        """Count a block of rows ``[R, M]``. Without similarities there is no alignment and no uniformity.

        selves: how many rows are among the columns themselves (default: all), related to which they cannot be.
        """
        positive, negative, columns = tile.relation.positive, tile.relation.negative, tile.columns
        width = positive.shape[1] if similarity is None or columns is None else similarity.shape[1]
        rows, pairs = (positive.new_tensor(float(n), dtype=torch.float64) for n in (len(positive), len(positive) * width))
        others = pairs - positive.numel()  # they repel with M = 1
        selves = rows if selves is None else selves.to(rows)
        alone = ((positive == 0) & (negative == 0)).sum() - selves  # nothing is related to itself, which is no choice
        aligned, spread, repelled = rows * 0, rows * 0, (negative > 0).sum() + others
        if similarity is not None:
            distance = 2 - 2 * similarity.to(positive.dtype)
            near = distance if columns is None else distance[:, columns]
            aligned = (positive * near).sum()
            near = near.mul(-2).exp_().mul_(negative > 0)
            spread = near.sum() if columns is None else distance.mul_(-2).exp_().index_copy_(1, columns, near).sum()
        sums = [
            rows,
            pairs,
            positive.sum(),
            negative.sum() + others,
            (positive.sum(1) == 0).sum(),
            alone,
            aligned,
            spread,
            repelled,
            selves,
        ]
        found = torch.stack([part.double() for part in sums])
        self._sums = found if self._sums is None else self._sums + found

    def total(self, like: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
        """``Float64[10]``, added up over ranks; a rank without rows has counted nothing."""
        return total(like.new_zeros(10, dtype=torch.float64) if self._sums is None else self._sums)


@torch.no_grad()
def diagnose(z: Tensor, tally: Tally) -> dict[str, Tensor]:
    """Numbers of one step over all ranks. z: ``[N, D]`` unit vectors; the tally has counted them against their columns.

    alignment and uniformity: Wang and Isola, ICML 2020 (alpha = 2, t = 2; alignment weighted by P).
    effective_rank: RankMe, Garrido et al., ICML 2023 (of at most 512 of a rank's rows, mean over ranks).
    """
    sums = tally.total(z, all_sum)
    p, aligned, spread, repelled = sums[[2, 6, 7, 8]].unbind()
    return {
        **_counts(sums),
        "alignment": aligned / p,
        "uniformity": (spread / repelled).log(),
        "effective_rank": all_mean(effective_rank(z)),
        "feature_std": all_mean(z.std(0).mean()),
    }


@torch.no_grad()
def counts(relation: Relation, total: Callable[[Tensor], Tensor] = all_sum) -> dict[str, Tensor]:
    """Who attracts, repels and is left alone. `total` adds up over the ranks that take part: by default all, and then all must call."""
    tally = Tally()
    tally.add(Tile(relation))
    return _counts(tally.total(relation.positive, total))


def _counts(sums: Tensor) -> dict[str, Tensor]:
    n, nm, p, m, orphans, left = sums[:6].unbind()
    selves = sums[9]
    return {
        "positives_per_anchor": p / n,
        "anchors_without_positive": orphans,
        "effective_negatives": m / n,
        "fraction_left_alone": left / (nm - selves).clamp(min=1),
        "mean_positive": p / nm,
        "mean_negative": m / nm,
    }


def effective_rank(z: Tensor) -> Tensor:
    """exp of the entropy of the normalised singular values of ``[N, D]``: between 1 (collapsed) and D."""
    values = torch.linalg.svdvals(z[:RANK_ROWS].float())
    share = values / values.sum().clamp(min=1e-12) + 1e-7
    return torch.exp(-(share * share.log()).sum())


class Watch:
    """What a person ought to be told of a run's logged numbers, once each.

    anchors without a positive: they teach nothing. Fewer than one effective negative: nothing holds features
    apart. Collapse: the effective rank stays below 1.5. A loss that stays the same.
    """

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=5)
        self._ranks: deque[float] = deque(maxlen=3)
        self._said: set[str] = set()

    def look(self, metrics: Mapping[str, float]) -> list[str]:
        """Warnings that a logged row gives rise to, which were not given before."""
        self._losses.append(metrics.get("loss", float("nan")))
        self._ranks.append(metrics.get("effective_rank", float("inf")))
        orphans, negatives = metrics.get("anchors_without_positive", 0.0), metrics.get("effective_negatives", float("inf"))
        steady = len(self._losses) == 5 and max(self._losses) - min(self._losses) <= 1e-6 * abs(self._losses[0])
        collapsed = len(self._ranks) == 3 and max(self._ranks) < 1.5
        found = {
            "orphans": f"{orphans:g} anchors of this batch have no positive and teach nothing; draw more samples per step, or, "
            "where the strategy has the field `together`, raise it"
            if orphans
            else "",
            "negatives": f"an anchor has {negatives:.2g} effective negatives: hardly anything holds features apart; draw more samples "
            "per step, or exclude less"
            if negatives < 1
            else "",
            "collapse": f"all features point one way (effective rank {self._ranks[-1]:.2f} over the last logged steps): they collapsed, "
            "or learning has not begun; a longer train.warmup_steps or a lower train.lr may help"
            if collapsed
            else "",
            "steady": "the loss has not changed over the last logged steps: is train.lr too low, or are the views all the same?"
            if steady
            else "",
        }
        new = {name: text for name, text in found.items() if text and name not in self._said}
        self._said |= set(new)
        return list(new.values())
