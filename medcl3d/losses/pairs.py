"""Losses on pairs of vectors without negatives: pure functions of the global batch, row i with row i."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def cosine_distance(first: Float[Tensor, "N E"], second: Float[Tensor, "N E"]) -> Float[Tensor, " N"]:
    """``Float[N]``: |a - b|^2 = 2 - 2 cos of the vectors' directions, ``[N, D]`` each.

    Source: BYOL (Grill et al., NeurIPS 2020, eq. 2); SimSiam's negative cosine (Chen and He, CVPR 2021, eq.
    1) is half of it, minus 1.
    """
    return 2 - 2 * F.cosine_similarity(first, second, dim=1)


def barlow_twins(
    first: Float[Tensor, "N E"],
    second: Float[Tensor, "N E"],
    weight: Float[Tensor, " N"],
    redundancy: float,
    eps: float = 1e-5,
) -> Float[Tensor, ""]:
    """Sum of (C_ii - 1)^2 + `redundancy` x that of C_ij^2; C: cross-correlation of features ``[N, D]``.

    weight: ``[N]`` weight of each pair in C. Source: Zbontar et al., ICML 2021, eq. 1 and 2.
    """
    a, b = ((x - x.mean(0)) / (x.var(0, correction=0) + eps).sqrt() for x in (first, second))
    correlation = (a * weight[:, None]).T @ b / weight.sum()
    diagonal = correlation.diagonal()
    return (diagonal - 1).square().sum() + redundancy * (correlation.square().sum() - diagonal.square().sum())


def vicreg(
    first: Float[Tensor, "N E"],
    second: Float[Tensor, "N E"],
    weight: Float[Tensor, " N"],
    invariance: float,
    variance: float,
    covariance: float,
    eps: float = 1e-4,
) -> Float[Tensor, ""]:
    """Distance of pairs ``[N, D]``, deviation below 1 of each feature, and covariance between features.

    weight: ``[N]`` weight of each pair in the distance. Source: Bardes et al., ICLR 2022, eq. 1 to 6.
    """
    distance = (weight[:, None] * (first - second).square()).sum() / (weight.sum() * first.shape[1])
    spread = sum(F.relu(1 - (x.var(0) + eps).sqrt()).mean() for x in (first, second)) / 2
    off_diagonal = off_diagonal_covariance(first) + off_diagonal_covariance(second)
    return invariance * distance + variance * spread + covariance * off_diagonal


def off_diagonal_covariance(x: Float[Tensor, "N E"]) -> Float[Tensor, ""]:
    """Sum over i != j of cov(x)_ij^2, divided by D; x: ``[N, D]``."""
    centred = x - x.mean(0)
    covariance = centred.T @ centred / (len(x) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / x.shape[1]


def koleo(z: Float[Tensor, "N E"], groups: Int[Tensor, " N"], eps: float = 1e-8) -> Float[Tensor, ""]:
    """Mean of -log of the distance to the nearest of another group; unit z: ``[N, D]``, groups: ``Int[N]``.

    It spreads vectors uniformly. Source: Sablayrolles et al., ICLR 2019, eq. 2, as in DINOv2 (Oquab et al.,
    TMLR 2024).
    """
    with torch.no_grad():
        similarity = (z @ z.T).masked_fill(groups[:, None] == groups, -2)
        nearest = similarity.argmax(1)
    return -(F.pairwise_distance(z, z[nearest], eps=eps) + eps).log().mean()
