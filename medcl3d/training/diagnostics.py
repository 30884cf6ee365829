"""What is logged of every step, whatever the strategy: who attracts whom, and whether features collapse."""

from __future__ import annotations

import torch
from torch import Tensor

from medcl3d.training.distributed import all_mean, all_sum
from medcl3d.types import Relation

# Singular values of more rows cost more than they tell.
RANK_ROWS = 512


@torch.no_grad()
def diagnose(z: Tensor, similarity: Tensor, relation: Relation) -> dict[str, Tensor]:
    """Numbers of one step over all ranks. z: ``[N, D]`` unit vectors; similarity, relation: ``[N, M]``.

    alignment and uniformity: Wang and Isola, ICML 2020 (alpha = 2, t = 2; alignment weighted by P).
    effective_rank: RankMe, Garrido et al., ICML 2023 (of at most 512 of a rank's rows, mean over ranks).
    """
    positive, negative = relation.positive, relation.negative
    rows, pairs = z.new_tensor(float(len(z))), z.new_tensor(float(positive.numel()))
    distance = 2 - 2 * similarity.to(positive.dtype)
    repelled = negative > 0
    sums = torch.stack(
        [
            rows,
            pairs,
            positive.sum(),
            negative.sum(),
            (positive.sum(1) == 0).sum(),
            ((positive == 0) & ~repelled).sum() - rows,  # nothing is related to itself, which is no choice
            (positive * distance).sum(),
            (torch.exp(-2 * distance) * repelled).sum(),
            repelled.sum(),
        ]
    )
    n, nm, p, m, orphans, alone, aligned, spread, repelled_pairs = all_sum(sums.double()).unbind()
    return {
        "positives_per_anchor": p / n,
        "anchors_without_positive": orphans,
        "effective_negatives": m / n,
        "fraction_left_alone": alone / (nm - n).clamp(min=1),
        "mean_positive": p / nm,
        "mean_negative": m / nm,
        "alignment": aligned / p,
        "uniformity": (spread / repelled_pairs).log(),
        "effective_rank": all_mean(effective_rank(z)),
        "feature_std": all_mean(z.std(0).mean()),
    }


def effective_rank(z: Tensor) -> Tensor:
    """exp of the entropy of the normalised singular values of ``[N, D]``: between 1 (collapsed) and D."""
    values = torch.linalg.svdvals(z[:RANK_ROWS].float())
    share = values / values.sum().clamp(min=1e-12) + 1e-7
    return torch.exp(-(share * share.log()).sum())
