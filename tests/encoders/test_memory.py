"""The estimate of stored activations equals what a real forward pass stores, without changing the network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from medcl3d.config.field_types import Choice
from medcl3d.core.embeddings import Features
from medcl3d.encoders.memory import activation_bytes
from medcl3d.encoders.network import Network, build_network
from medcl3d.encoders.recompute import recompute_blocks

ENCODERS = [
    ("unet3d", {"channels": (4, 8), "strides": (1, 2)}),
    ("resnet3d", {"depth": 10, "norm": "batch", "width": 0.125}),
    ("vit3d", {"hidden_size": 12, "num_layers": 2, "num_registers": 2}),
    ("swin3d", {"feature_size": 12}),
]


def stored_bytes(network: nn.Module, size: int, dtype: torch.dtype | None) -> int:
    """Bytes per crop that a real forward pass of two crops stores, without weights and buffers."""
    own = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}
    stored: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        stored[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=dtype, enabled=dtype is not None),
    ):
        network(torch.randn(2, 1, size, size, size))
    return sum(t.untyped_storage().nbytes() for key, t in stored.items() if key not in own) // 2


def test_a_convolution_and_a_relu_store_their_input_and_output() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(1, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Features:
            found = self.conv(x).relu()
            return Features(found.mean((2, 3, 4)), (found,))

    assert activation_bytes(Network(Two()), 1, (4, 6, 8), None) == 4 * (4 * 6 * 8 + 4 * 4 * 6 * 8)


@pytest.mark.parametrize(("name", "fields"), ENCODERS)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_estimate_equals_a_real_forward_pass(
    name: str, fields: dict[str, Any], dtype: torch.dtype | None
) -> None:
    network = build_network(Choice(name, fields), 1, decoder=name == "unet3d")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    estimate = activation_bytes(network, 1, (32, 32, 32), dtype)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    # In bfloat16 the copies of weights are stored too: once, and here divided by two crops.
    assert estimate == pytest.approx(stored_bytes(network, 32, dtype), rel=0 if dtype is None else 0.05)


def test_recomputed_blocks_store_less() -> None:
    network = build_network(Choice("unet3d", {"channels": (4, 8), "strides": (1, 2)}), 1, decoder=False)
    whole = activation_bytes(network, 1, (16, 16, 16), None)
    recompute_blocks(network)
    assert activation_bytes(network, 1, (16, 16, 16), None) < whole / 2
