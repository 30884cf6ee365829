"""Projection heads between features and the loss."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from medcl3d.config.suggestions import require_one_of
from medcl3d.distributed.collectives import gather

HeadNorm = Literal["layer", "group", "batch", "none"]
GROUPS = 8


class GlobalBatchNorm(nn.Module):
    """Batch norm of ``[N, C]`` over the rows of all ranks, with exact gradients, equal to one process.

    Rows depend on each other, so the gradient cache refuses it. Source: Ioffe and Szegedy, ICML 2015.
    """

    batch_statistics = True
    mean: Float[Tensor, " F"]
    var: Float[Tensor, " F"]

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def forward(self, x: Float[Tensor, "N F"]) -> Float[Tensor, "N F"]:
        """Normalise, by the running statistics in evaluation; the shape is kept."""
        mean, var = self.mean, self.var
        if self.training:
            rows = gather(x)
            mean, var = rows.mean(0), rows.var(0, correction=0)
            with torch.no_grad():
                self.mean.lerp_(mean.to(self.mean.dtype), self.momentum)
                self.var.lerp_((var * len(rows) / max(1, len(rows) - 1)).to(self.var.dtype), self.momentum)
        return (x - mean) / (var + self.eps).sqrt() * self.weight + self.bias


NORMS: dict[HeadNorm, Callable[[int], nn.Module]] = {
    "layer": nn.LayerNorm,
    "group": lambda channels: nn.GroupNorm(GROUPS if channels % GROUPS == 0 else 1, channels),
    "batch": GlobalBatchNorm,
    "none": lambda _channels: nn.Identity(),
}


class Projector(nn.Module):
    """Linear layers with a norm and ReLU between them: ``[N, F]`` -> ``[N, dim]`` in float32.

    unit  whether the result has length 1
    norm  batch subtracts the mean over rows, which is most of the norm of pooled features; layer uses each
          row alone
    """

    def __init__(
        self,
        in_features: int,
        hidden_dim: int,
        out_dim: int,
        num_layers: int,
        norm: HeadNorm,
        unit: bool = True,
    ):
        super().__init__()
        require_one_of("norm", norm, HeadNorm)  # also with a single layer, which uses no norm
        self.unit = unit
        widths = [in_features, *[hidden_dim] * (num_layers - 1), out_dim]
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths[:-1]):
            layers += [nn.Linear(narrow, wide), NORMS[norm](wide), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], bias=False))

    def forward(self, x: Float[Tensor, "N F"]) -> Float[Tensor, "N E"]:
        """Compute in float32 or better, also under autocast: at T = 0.01 bfloat16 is too coarse."""
        with torch.autocast(x.device.type, enabled=False):
            out: Tensor = self.layers(x.to(torch.promote_types(x.dtype, torch.float32)))
            return F.normalize(out, dim=1) if self.unit else out
