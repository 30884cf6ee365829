"""The small network between features and the loss."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Projector(nn.Module):
    """Linear layers with layer norm and ReLU between them: ``[N, F]`` -> unit vectors ``[N, dim]`` in float32.

    Layer norm, since statistics of a small 3-D batch are noise and would tie samples to their rank.
    """

    def __init__(self, in_features: int, hidden_dim: int, out_dim: int, num_layers: int):
        super().__init__()
        widths = [in_features, *[hidden_dim] * (num_layers - 1), out_dim]
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths[:-1]):
            layers += [nn.Linear(narrow, wide), nn.LayerNorm(wide), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Unit vectors. Float32 whatever autocast says: at T = 0.01 bfloat16 has no digits left."""
        with torch.autocast(x.device.type, enabled=False):
            return F.normalize(self.layers(x.to(torch.promote_types(x.dtype, torch.float32))), dim=1)
