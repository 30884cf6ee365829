"""The decoder and the network of an encoder and a decoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from medcl3d.config.field_types import Choice
from medcl3d.core.errors import ConfigError
from medcl3d.core.geometry import Triple
from medcl3d.encoders.decoder import Decoder, _factors
from medcl3d.encoders.network import build_network, check_patch_size

NETWORKS: list[tuple[str, dict[str, Any], Triple]] = [
    ("resnet3d", {"depth": 10, "width": 0.125}, (32, 64, 32)),
    ("resnet3d", {"depth": 10, "width": 0.125, "max_pool": False}, (16, 32, 48)),
    ("unet3d", {"channels": (4, 8, 12), "strides": (1, 2, 2)}, (12, 20, 8)),
    ("unet3d", {"channels": (4, 8, 16), "strides": (1, (1, 2, 2), 2)}, (6, 20, 12)),
    ("unet3d", {"channels": (8, 16), "strides": ((1, 2, 2), 2)}, (6, 12, 20)),
    ("unet3d", {"channels": (4, 8), "strides": (1, 2), "residual": False}, (6, 12, 20)),
    ("resnet3d", {"depth": 50, "width": 0.0625, "squeeze_excitation": True}, (32, 64, 32)),
    ("vit3d", {"patch": (4, 8, 8), "hidden_size": 12, "num_layers": 1, "num_registers": 2}, (8, 16, 24)),
    ("swin3d", {"feature_size": 6, "num_heads": (1, 2, 2, 3), "window_size": (4, 4, 4)}, (32, 32, 64)),
]


@pytest.mark.parametrize("in_channels", [1, 4])
@pytest.mark.parametrize(("name", "fields", "shape"), NETWORKS)
def test_decoded_is_on_the_grid_of_the_input(
    name: str, fields: dict[str, Any], shape: Triple, in_channels: int
) -> None:
    network = build_network(Choice(name, fields), in_channels, decoder=True)
    features = network(torch.randn(2, in_channels, *shape))
    assert network.decoder is not None and features.decoded is not None
    assert features.decoded.shape == (2, network.decoder.out_channels, *shape)
    assert features.pooled.shape == (2, network.num_features)


@pytest.mark.parametrize(("name", "fields", "shape"), NETWORKS)
def test_decoded_depends_on_every_parameter(name: str, fields: dict[str, Any], shape: Triple) -> None:
    """DistributedDataParallel needs a gradient for every parameter."""
    network = build_network(Choice(name, fields), 1, decoder=True)
    network(torch.randn(2, 1, *shape)).decoded.square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


def test_a_decoder_handles_large_and_equal_strides() -> None:
    strides = ((8, 8, 8), (8, 8, 8), (16, 24, 8))
    decoder = Decoder(1, (6, 10, 12), strides)
    x = torch.randn(1, 1, 16, 24, 16)
    maps = [
        torch.randn(1, c, 16 // d, 24 // h, 16 // w)
        for c, (d, h, w) in zip((6, 10, 12), strides, strict=True)
    ]
    assert decoder(x, maps).shape[2:] == x.shape[2:]
    assert _factors((8, 12, 1), (1, 1, 1)) == [(2, 2, 1), (2, 2, 1), (2, 3, 1)]
    with pytest.raises(ValueError, match="multiple"):
        _factors((3, 2, 2), (2, 2, 2))


def test_fine_detail_of_the_input_passes_a_strided_encoder() -> None:
    """The skip from the input: inputs that differ in one voxel differ most at that voxel after decoding."""
    torch.manual_seed(0)
    network = build_network(Choice("resnet3d", {"depth": 10, "width": 0.125}), 1, decoder=True).eval()
    x = torch.zeros(1, 1, 32, 32, 32)
    y = x.clone()
    y[..., 7, 9, 11] = 10.0
    difference = (network(x).decoded - network(y).decoded).abs().sum(1)[0]
    peak = tuple(int(i) for i in torch.unravel_index(difference.argmax(), difference.shape))
    assert max(abs(p - q) for p, q in zip(peak, (7, 9, 11), strict=True)) <= 3


def test_norm_and_names_of_the_parts() -> None:
    network = build_network(
        Choice("unet3d", {"channels": (4, 8), "strides": (1, 2), "norm": "instance"}), 1, decoder=True
    )
    assert not [m for m in network.modules() if isinstance(m, nn.GroupNorm)]
    assert {name for name, _ in network.named_children()} == {"encoder", "decoder"}
    assert build_network(Choice("unet3d"), 1, decoder=False).decoder is None


def test_an_indivisible_patch_is_an_error_with_both_fields() -> None:
    network = build_network(
        Choice("unet3d", {"channels": (4, 8, 8), "strides": (1, (1, 2, 2), 2)}), 1, decoder=False
    )
    assert network.minimum_multiple == (2, 4, 4)
    check_patch_size(network, (6, 12, 8))
    with pytest.raises(ConfigError, match=r"data\.patch_size.*encoder.*\[2, 4, 4\].*\[8, 12, 4\]"):
        check_patch_size(network, (7, 12, 3))


def test_a_patch_that_a_swin_transformer_would_pad_is_refused() -> None:
    network = build_network(Choice("swin3d", {"patch": (1, 2, 2)}), 1, decoder=False)
    check_patch_size(network, (16, 64, 32))
    with pytest.raises(
        ConfigError, match=r"data\.patch_size = \[16, 48, 32\].*\[16, 32, 32\].*; use \[16, 64, 32\]"
    ):
        check_patch_size(network, (16, 48, 32))
