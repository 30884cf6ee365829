"""The contract of every encoder: shapes, strides, gradients, layers, bfloat16, loading a state, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medcl3d.config.field_types import Choice
from medcl3d.core.errors import ConfigError
from medcl3d.core.geometry import Triple
from medcl3d.distributed.precision import autocast
from medcl3d.encoders import ENCODERS, centre_of
from medcl3d.encoders.blocks import norm_layer
from medcl3d.encoders.resnet3d import ResNet3d
from medcl3d.encoders.unet3d import UNet3d

SMALL: list[tuple[str, dict[str, Any], Triple]] = [
    ("resnet3d", {"depth": 10, "width": 0.125}, (32, 32, 96)),
    (
        "resnet3d",
        {"depth": 18, "width": 0.125, "max_pool": False, "stem_kernel": 3, "norm": "batch"},
        (48, 16, 32),
    ),
    ("resnet3d", {"depth": 50, "width": 0.0625, "stem_stride": 1, "norm": "instance"}, (48, 48, 32)),
    ("unet3d", {"channels": (4, 8, 12), "strides": (1, 2, 2)}, (12, 20, 28)),
    (
        "unet3d",
        {
            "channels": (4, 8, 16),
            "strides": (1, (1, 2, 2), 2),
            "blocks": (1, 2, 1),
            "kernel_sizes": ((1, 3, 3), 3, 3),
        },
        (6, 20, 12),
    ),
    (
        "unet3d",
        {"channels": (4, 8), "strides": ((1, 2, 2), 2), "norm": "instance", "act": "gelu"},
        (6, 12, 20),
    ),
    ("vit3d", {"patch": (4, 8, 8), "hidden_size": 12, "num_layers": 2}, (8, 24, 16)),
    ("vit3d", {"patch": (8, 8, 8), "hidden_size": 12, "num_layers": 2, "num_registers": 3}, (16, 8, 24)),
    ("resnet3d", {"depth": 50, "width": 0.0625, "squeeze_excitation": True}, (32, 64, 32)),
    (
        "unet3d",
        {"channels": (4, 8), "strides": (1, 2), "blocks": (2, 1), "residual": False, "norm": "instance"},
        (8, 12, 20),
    ),
    ("swin3d", {"feature_size": 6, "num_heads": (1, 2, 2, 3), "window_size": (4, 4, 4)}, (32, 64, 32)),
    (
        "swin3d",
        {
            "patch": (1, 2, 2),
            "feature_size": 3,
            "num_heads": (1, 1, 2, 3),
            "merging": "mergingv2",
            "v2": True,
        },
        (16, 64, 32),
    ),
]


@pytest.mark.parametrize("in_channels", [1, 4])
@pytest.mark.parametrize(("name", "fields", "shape"), SMALL)
def test_maps_have_the_declared_channels_and_strides(
    name: str, fields: dict[str, Any], shape: Triple, in_channels: int
) -> None:
    encoder = ENCODERS.build(Choice(name, fields), in_channels)
    features = encoder(torch.randn(2, in_channels, *shape))
    assert features.pooled.shape == (2, encoder.num_features)
    assert features.decoded is None
    assert len(features.maps) == len(encoder.channels) == len(encoder.strides)
    for found, channels, stride in zip(features.maps, encoder.channels, encoder.strides, strict=True):
        assert found.shape == (2, channels, *(n // s for n, s in zip(shape, stride, strict=True)))
    for finer, coarser in zip(encoder.strides, encoder.strides[1:], strict=False):
        assert max(coarser) > max(finer) or coarser > finer


@pytest.mark.parametrize(("name", "fields", "shape"), SMALL)
def test_pooled_features_depend_on_every_parameter(name: str, fields: dict[str, Any], shape: Triple) -> None:
    encoder = ENCODERS.build(Choice(name, fields), 1)
    encoder(torch.randn(2, 1, *shape)).pooled.square().sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("name", "fields", "shape"), SMALL)
def test_every_module_of_a_layer_exists_and_is_in_one_layer(
    name: str, fields: dict[str, Any], shape: Triple
) -> None:
    encoder = ENCODERS.build(Choice(name, fields), 1)
    pieces = [piece for layer in encoder.layers() for piece in layer]
    names = [n for n, _ in encoder.named_parameters()]
    found = {piece: {n for n in names if n == piece or n.startswith(f"{piece}.")} for piece in pieces}
    assert all(found.values()) and sum(map(len, found.values())) == len(set.union(*found.values()))
    left = set(names) - set.union(*found.values())
    assert left == ({"norm.weight", "norm.bias"} if name == "vit3d" else set())


@pytest.mark.parametrize(("name", "fields", "shape"), SMALL)
def test_a_forward_pass_in_bfloat16_is_finite_and_near(
    name: str, fields: dict[str, Any], shape: Triple
) -> None:
    torch.manual_seed(0)
    encoder = ENCODERS.build(Choice(name, fields), 1).eval()
    x = torch.randn(2, 1, *shape)
    with torch.no_grad():
        exact = encoder(x)
        with autocast(torch.device("cpu"), torch.bfloat16):
            found = encoder(x)
    assert found.pooled.dtype is torch.float32 and all(bool(m.isfinite().all()) for m in found.maps)
    assert float((found.pooled - exact.pooled).norm() / exact.pooled.norm()) < 0.1


@pytest.mark.parametrize(("name", "fields", "shape"), SMALL)
def test_a_loaded_state_gives_equal_outputs(name: str, fields: dict[str, Any], shape: Triple) -> None:
    first, second = (ENCODERS.build(Choice(name, fields), 2).eval() for _ in range(2))
    second.load_state_dict(first.state_dict(), strict=True)
    x = torch.randn(1, 2, *shape)
    with torch.no_grad():
        for ours, theirs in zip(first(x).maps, second(x).maps, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("resnet3d", {"depth": 18, "squeeze_excitation": True}, "squeeze_excitation.*depth = 18"),
        ("swin3d", {"feature_size": 10}, r"feature_size = 10.*num_heads = \[3, 6, 12, 24\]"),
    ],
)
def test_impossible_blocks_are_refused(name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ENCODERS.build(Choice(name, fields), 1)


@pytest.mark.parametrize(
    ("name", "fields"), [("unet3d", {"channels": (4, 8)}), ("unet3d", {"channels": (), "strides": ()})]
)
def test_stages_that_do_not_match_are_refused(name: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="channels"):
        ENCODERS.build(Choice(name, fields), 1)


def test_a_kernel_that_skips_voxels_is_refused() -> None:
    with pytest.raises(ConfigError, match="kernel_sizes"):
        UNet3d(1, channels=(4, 8), strides=(1, 2), kernel_sizes=(3, 1))


def test_the_chosen_norm_is_the_only_one() -> None:
    for norm, kind in (("group", torch.nn.GroupNorm), ("instance", torch.nn.InstanceNorm3d)):
        encoder = ResNet3d(1, depth=10, norm=norm, width=0.125)  # type: ignore[arg-type]
        norms = [m for m in encoder.modules() if "Norm" in type(m).__name__]
        assert norms and all(isinstance(m, kind) for m in norms)


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 8, 12, 20, 31, 64, 96])
def test_groups_divide_the_channels_and_hold_two_or_more(channels: int) -> None:
    groups = norm_layer("group", channels)[1]["num_groups"]
    assert channels % groups == 0 and 1 <= groups <= 8
    assert channels // groups >= 2 or channels == 1


@pytest.mark.parametrize(
    ("name", "fields", "size"),
    [
        ("resnet3d", {"depth": 10, "width": 0.125}, 64),
        ("resnet3d", {"depth": 18, "width": 0.125, "max_pool": False, "stem_kernel": 3}, 48),
        ("resnet3d", {"depth": 50, "width": 0.125, "squeeze_excitation": True}, 64),
        ("unet3d", {"channels": (4, 8, 12, 16), "strides": (1, 2, 2, 2)}, 48),
        ("unet3d", {"channels": (4, 8, 12), "strides": (1, (1, 2, 2), 2), "residual": False}, 32),
        ("unet3d", {"channels": (4, 8, 12), "strides": (1, 2, 2), "resenc": True, "norm": "instance"}, 32),
        ("vit3d", {"patch": (4, 8, 8), "hidden_size": 12, "num_layers": 2}, 48),
        ("swin3d", {"feature_size": 6, "num_heads": (1, 2, 2, 3), "window_size": (4, 4, 4)}, 64),
        ("whole_unet3d", {"width": 4, "num_downs": 2, "out_channels": 4}, 32),
    ],
)
def test_a_map_is_centred_where_it_declares(name: str, fields: dict[str, Any], size: int) -> None:
    """The voxels of a crop that change a voxel of a map most are around its centre, for random weights."""
    places = torch.stack(torch.meshgrid(*[torch.arange(size, dtype=torch.float64)] * 3, indexing="ij"))
    offsets: dict[Triple, list[float]] = {}
    for seed in range(3):
        torch.manual_seed(seed)
        encoder = ENCODERS.build(Choice(name, fields), 1).eval()
        crop = torch.randn(1, 1, size, size, size, requires_grad=True)
        for stride, values in zip(encoder.strides, encoder(crop).maps, strict=True):
            if max(stride) > 8:
                break
            cell = [n // 2 for n in values.shape[2:]]
            weight = torch.zeros(size, size, size, dtype=torch.float64)
            for drawn in torch.randn(6, values.shape[1]):
                output = drawn @ values[(0, slice(None), *cell)]
                (gradient,) = torch.autograd.grad(output, crop, retain_graph=True)
                weight += gradient[0, 0].double() ** 2
            found = (places * weight).sum((1, 2, 3)) / weight.sum()
            first = torch.tensor([i * s for i, s in zip(cell, stride, strict=True)])
            declared = torch.tensor(centre_of(encoder, stride))
            offsets.setdefault(stride, []).append(float((found - first - declared).mean()))
    for stride, found_offsets in offsets.items():
        # The two conventions differ by (stride - 1) / 2.
        assert abs(sum(found_offsets) / 3) < 0.2 + (max(stride) - 1) / 5, (stride, found_offsets)
