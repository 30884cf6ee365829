"""Losses on soft assignments to prototypes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def scores_of(z: Float[Tensor, "N E"], prototypes: Float[Tensor, "K E"]) -> Float[Tensor, "N K"]:
    """``Float[N, K]``: cosines of unit vectors ``[N, D]`` and prototypes ``[K, D]``, in float32 or better."""
    with torch.autocast(z.device.type, enabled=False):
        return z @ F.normalize(prototypes, dim=1).T


@torch.no_grad()
def sinkhorn(scores: Float[Tensor, "N K"], epsilon: float, iterations: int) -> Float[Tensor, "N K"]:
    """Codes ``Float[N, K]``: e^(scores / epsilon), scaled to equal use of all prototypes; rows sum to 1.

    Computed in logarithms, since values up to e^(1 / 0.05) would lose precision. Source: SwAV (Caron et al.,
    NeurIPS 2020, eq. 3 to 5); Cuturi, NeurIPS 2013.
    """
    log_q = scores / epsilon
    for _ in range(iterations):
        log_q = log_q - torch.logsumexp(log_q, 0, keepdim=True)
        log_q = log_q - torch.logsumexp(log_q, 1, keepdim=True)
    return log_q.exp()


def cross_entropy_sum(
    log_probabilities: Float[Tensor, "N K"], targets: Float[Tensor, "M K"], positive: Float[Tensor, "N M"]
) -> Float[Tensor, ""]:
    """Sum over pairs of P_ij H(target_j, prediction_i): ``[N, K]``, ``[M, K]``, ``[N, M]``.

    Computed as one sum over K, since row i depends on the targets only through sum_j P_ij q_j.
    Source: the swapped prediction of SwAV (eq. 2) and DINO (Caron et al., ICCV 2021, eq. 3), weighted by P.
    """
    return -((positive @ targets) * log_probabilities).sum()
