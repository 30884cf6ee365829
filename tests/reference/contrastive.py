"""Contrastive losses by plain loops in float64, and by the whole matrix at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Embeddings = list[list[float]]


def _cosine(z: Embeddings) -> Embeddings:
    unit = [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in z]
    return [[sum(a * b for a, b in zip(x, y, strict=True)) for y in unit] for x in unit]


def contrastive_loss_loops(
    z: Embeddings, positive: Embeddings, negative: Embeddings, temperature: float, denominator: str
) -> float:
    """L = sum_i a_i L_i / sum_i a_i with L_i = - sum_j (P_ij / sum_k P_ik) log(e^s_ij / D) and a_i = min(1,
    sum_j P_ij).
    """
    n, cosine = len(z), _cosine(z)
    total = weight = 0.0
    for i in range(n):
        others = [k for k in range(n) if k != i]
        mass = sum(positive[i][k] for k in others)
        if mass == 0:
            continue
        e = [math.exp(cosine[i][k] / temperature) for k in range(n)]
        row = 0.0
        for j in others:
            if positive[i][j] == 0:
                continue
            if denominator == "all":
                d = sum((positive[i][k] + negative[i][k]) * e[k] for k in others)
            else:
                d = (1 - negative[i][j]) * e[j] + sum(negative[i][k] * e[k] for k in others)
            row -= positive[i][j] / mass * math.log(e[j] / d)
        a = min(1.0, mass)
        total, weight = total + a * row, weight + a
    return total / weight


def budget_loss_loops(z: Embeddings, budget: Embeddings) -> float:
    """The mean over pairs with a budget of max(0, 1 - cos - b)^2; 0 without such a pair."""
    cosine, excess = _cosine(z), []
    for i in range(len(z)):
        for j in range(len(z)):
            if i != j and not math.isnan(budget[i][j]):
                excess.append(max(0.0, 1 - cosine[i][j] - budget[i][j]) ** 2)
    return sum(excess) / len(excess) if excess else 0.0


def dcl_loops(z: Embeddings, temperature: float) -> float:
    """DCL (Yeh et al., 2022, eq. 6), pairs are rows i and i + n/2: -s_ij + log sum_{k != i, j} e^s_ik."""
    n, cosine = len(z), _cosine(z)
    total = 0.0
    for i in range(n):
        j = (i + n // 2) % n
        total += -cosine[i][j] / temperature + math.log(
            sum(math.exp(cosine[i][k] / temperature) for k in range(n) if k not in (i, j))
        )
    return total / n


def whole_matrix_sum(
    similarity: Tensor,
    positive: Tensor,
    negative: Tensor,
    temperature: float,
    denominator: str,
    decoupled: bool,
) -> tuple[Tensor, Tensor]:
    """Sum of a_i L_i and of a_i from the whole matrix, with autograd's gradient."""
    s = similarity / temperature
    mass = positive.sum(1)
    anchors = mass > 0
    if decoupled:
        anchors = anchors & (negative.sum(1) > 0)
    s, positive, negative, mass = s[anchors], positive[anchors], negative[anchors], mass[anchors]

    def log_sum(weight: Tensor) -> Tensor:
        return torch.logsumexp(
            s.masked_fill(weight == 0, -torch.inf) + torch.where(weight == 0, 1.0, weight).log(),
            dim=1,
            keepdim=True,
        )

    if decoupled:
        log_d = log_sum(negative)
    elif denominator == "all":
        log_d = log_sum(positive + negative)
    else:
        log_d = torch.logaddexp(s + (1 - negative).clamp(min=0).log(), log_sum(negative))
        log_d = torch.where(positive > 0, log_d, 0.0)
    weight = mass.clamp(max=1)
    return (weight * (positive * (log_d - s)).sum(1) / mass).sum(), weight.sum()
