"""Floating-point operations of a network, counted without computing them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from medcl3d.encoders.network import Network


def forward_flops(network: Network, in_channels: int, patch_size: Sequence[int]) -> int:
    """Operations of one crop's forward pass: two per multiply-add of convolutions and matrix products.

    Only shapes are propagated, on PyTorch's `meta` device; weights and running statistics do not change.
    """
    state = (*network.named_parameters(), *network.named_buffers())
    shapes = {name: tensor.detach().to("meta") for name, tensor in state}
    crops = torch.empty((2, in_channels, *patch_size), device="meta")  # batch norm needs two values
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        functional_call(network, shapes, (crops,))
    return int(counter.get_total_flops()) // len(crops)
