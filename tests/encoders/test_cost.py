"""Operations are counted as by hand for all encoders, without changing the network."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn

from medcl3d.config.field_types import Choice
from medcl3d.core.embeddings import Features
from medcl3d.encoders.network import Network, build_network, forward_flops


def test_a_convolution_and_a_linear_layer_are_counted_as_by_hand() -> None:
    class Two(nn.Module):
        """A 3^3 convolution from 2 to 4 channels, then a linear layer from 4 to 5."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv3d(2, 4, 3, padding=1), nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> Features:
            found = self.conv(x)
            return Features(self.linear(found.mean((2, 3, 4))), (found,))

    assert forward_flops(Network(Two()), 2, (4, 6, 8)) == 2 * (4 * 6 * 8 * 27 * 2 * 4) + 2 * 4 * 5


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("unet3d", {"channels": (4, 8), "strides": (1, 2)}),
        ("resnet3d", {"depth": 10, "norm": "batch", "width": 0.125}),
        ("vit3d", {"hidden_size": 12, "num_layers": 2, "num_registers": 2}),
        ("swin3d", {"feature_size": 12}),
    ],
)
def test_counting_is_fast_and_does_not_change_the_network(name: str, fields: dict[str, Any]) -> None:
    network = build_network(Choice(name, fields), 3, decoder=True)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    small = forward_flops(network, 3, (32, 32, 32))
    started = time.process_time()
    large = forward_flops(network, 3, (64, 32, 32))
    assert time.process_time() - started < 1
    assert 0 < 1.5 * small < large
    assert all(
        torch.equal(value, before[key]) and not value.is_meta for key, value in network.state_dict().items()
    )
