"""Losses of pairs and of assignments by plain loops in float64."""

from __future__ import annotations

import math

Embeddings = list[list[float]]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def column(rows: Embeddings, d: int) -> list[float]:
    return [row[d] for row in rows]


def variance(values: list[float], correction: int) -> float:
    middle = mean(values)
    return sum((v - middle) ** 2 for v in values) / (len(values) - correction)


def byol_loops(first: Embeddings, second: Embeddings) -> list[float]:
    """BYOL (Grill et al., 2020, eq. 2): 2 - 2 <a, b> / (|a| |b|)."""
    found = []
    for a, b in zip(first, second, strict=True):
        product = sum(x * y for x, y in zip(a, b, strict=True))
        found.append(2 - 2 * product / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b)))
    return found


def barlow_twins_loops(
    first: Embeddings, second: Embeddings, weight: list[float], redundancy: float, eps: float
) -> float:
    """Barlow Twins (Zbontar et al., 2021, eq. 1 and 2) with weighted pairs."""
    n, width = len(first), len(first[0])
    sides = []
    for rows in (first, second):
        scale = [(mean(column(rows, d)), math.sqrt(variance(column(rows, d), 0) + eps)) for d in range(width)]
        sides.append([[(row[d] - scale[d][0]) / scale[d][1] for d in range(width)] for row in rows])
    total = 0.0
    for i in range(width):
        for j in range(width):
            c = sum(weight[b] * sides[0][b][i] * sides[1][b][j] for b in range(n)) / sum(weight)
            total += (c - 1) ** 2 if i == j else redundancy * c * c
    return total


def vicreg_loops(
    first: Embeddings,
    second: Embeddings,
    weight: list[float],
    factors: tuple[float, float, float],
    eps: float,
) -> float:
    """VICReg (Bardes et al., 2022, eq. 1 to 6) with weighted distances."""
    n, width = len(first), len(first[0])
    distance = sum(weight[b] * (first[b][d] - second[b][d]) ** 2 for b in range(n) for d in range(width)) / (
        sum(weight) * width
    )
    spread = covariance = 0.0
    for rows in (first, second):
        means = [mean(column(rows, d)) for d in range(width)]
        spread += (
            sum(max(0.0, 1 - math.sqrt(variance(column(rows, d), 1) + eps)) for d in range(width)) / width / 2
        )
        for i in range(width):
            for j in range(width):
                if i != j:
                    covariance += (
                        sum((r[i] - means[i]) * (r[j] - means[j]) for r in rows) / (n - 1)
                    ) ** 2 / width
    return factors[0] * distance + factors[1] * spread + factors[2] * covariance


def koleo_loops(z: Embeddings, groups: list[int], eps: float) -> float:
    """KoLeo (Sablayrolles et al., 2019, eq. 2): nearest neighbours among other groups; eps as torch's
    pairwise distance has it.
    """
    found = []
    for i, a in enumerate(z):
        others = [z[j] for j in range(len(z)) if groups[j] != groups[i]]
        nearest = max(others, key=lambda b: sum(x * y for x, y in zip(a, b, strict=True)))
        found.append(
            -math.log(math.sqrt(sum((x - y + eps) ** 2 for x, y in zip(a, nearest, strict=True))) + eps)
        )
    return mean(found)


def sinkhorn_loops(scores: Embeddings, epsilon: float, iterations: int) -> Embeddings:
    """SwAV (Caron et al., 2020, eq. 3 to 5): columns, then rows of e^(s / epsilon) scaled to one sum each."""
    q = [[math.exp(s / epsilon) for s in row] for row in scores]
    for _ in range(iterations):
        sums = [sum(column(q, k)) for k in range(len(q[0]))]
        q = [[v / sums[k] for k, v in enumerate(row)] for row in q]
        q = [[v / sum(row) for v in row] for row in q]
    return q


def cross_entropy_loops(log_p: Embeddings, targets: Embeddings, positive: Embeddings) -> float:
    """DINO (Caron et al., 2021, eq. 3): sum over pairs of -P_ij sum_k q_jk log p_ik."""
    return -sum(
        positive[i][j] * sum(q * lp for q, lp in zip(targets[j], log_p[i], strict=True))
        for i in range(len(log_p))
        for j in range(len(targets))
    )
