"""The contrastive loss of every relation: NT-Xent, SupCon, y-Aware and DCL are special cases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from medcl3d.types import Relation

Denominator = Literal["all", "own"]


@dataclass(frozen=True)
class WeightedSum:
    """Sum over anchors of a_i L_i, and of a_i: ranks add both before they divide."""

    loss: Tensor
    weight: Tensor


def contrastive_sum(
    similarity: Tensor, relation: Relation, temperature: float, *, denominator: Denominator = "all", decoupled: bool = False
) -> WeightedSum:
    """Sum over the rows of the weighted contrastive loss.

    similarity: ``[N, M]`` cosine similarities; relation: ``[N, M]``. With s = similarity / temperature,
    `all`: D_i = sum_k (P_ik + M_ik) e^s_ik; `own`: D_ij = (1 - M_ij) e^s_ij + sum_k M_ik e^s_ik;
    `decoupled`: D_i = sum_k M_ik e^s_ik. L_i = - sum_j (P_ij / sum_k P_ik) log(e^s_ij / D), weighted by
    a_i = min(1, sum_j P_ij): a weak pair pulls less than a strong one, and nothing jumps as a weight
    goes to 0. Anchors without a positive do not enter. Where P + M < 1 the loss may fall below 0.

    Source: NT-Xent (Chen 2020, eq. 1), SupCon L_out (Khosla 2020, eq. 2), y-Aware (Dufumier 2021, eq. 3),
    DCL (Yeh 2022, eq. 6). Computed in float32 at least.
    """
    s = similarity.to(torch.promote_types(similarity.dtype, torch.float32)) / temperature
    positive, negative = relation.positive.to(s.dtype), relation.negative.to(s.dtype)
    mass = positive.sum(1)
    anchors = mass > 0
    if decoupled:
        anchors &= negative.sum(1) > 0
    s, positive, negative, mass = s[anchors], positive[anchors], negative[anchors], mass[anchors]
    if decoupled:
        log_d = _log_weighted_sum(s, negative)
    elif denominator == "all":
        log_d = _log_weighted_sum(s, positive + negative)
    else:
        log_d = torch.logaddexp(s + (1 - negative).clamp(min=0).log(), _log_weighted_sum(s, negative))
        log_d = torch.where(positive > 0, log_d, 0.0)  # D_ij of what is no positive may be empty
    row_loss = (positive * (log_d - s)).sum(1) / mass
    weight = mass.clamp(max=1)
    return WeightedSum((weight * row_loss).sum(), weight.sum())


def _log_weighted_sum(s: Tensor, weight: Tensor) -> Tensor:
    """log sum_k weight_ik e^s_ik, ``[N, 1]``; -inf for a row without weight."""
    return torch.logsumexp(s.masked_fill(weight == 0, -torch.inf) + torch.where(weight == 0, 1.0, weight).log(), dim=1, keepdim=True)
