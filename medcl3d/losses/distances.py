"""Regression of given distances by distances of vectors."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def distance_errors(
    rows: Float[Tensor, "N E"],
    cols: Float[Tensor, "M E"],
    target: Float[Tensor, "N M"],
    compared: Bool[Tensor, "N M"],
) -> Float[Tensor, "N M"]:
    """``Float[N, M]``: (|a - b| - target)^2 of vectors ``[N, D]`` and ``[M, D]``, 0 if not compared.

    target: ``[N, M]`` distances; compared: ``Bool[N, M]``. Computed in float32 or better. Equal vectors get
    no gradient from their pair, since the direction is undefined. Source: APE (arXiv 2409.10291).
    """
    dtype = torch.promote_types(rows.dtype, torch.float32)
    with torch.autocast(rows.device.type, enabled=False):
        distance = torch.cdist(rows.to(dtype), cols.to(dtype), compute_mode="donot_use_mm_for_euclid_dist")
        wanted = torch.where(compared, target.to(dtype), 0.0)
        return torch.where(compared, distance - wanted, 0.0).square()
