"""The contract of every encoder: shapes, strides, gradients, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks.nets.resnet import ResNet

from medcl3d.encoders import ENCODERS
from medcl3d.encoders.blocks import norm_layer
from medcl3d.encoders.resnet3d import BLOCKS, ResNet3d
from medcl3d.encoders.unet3d import UNet3d
from medcl3d.errors import ConfigError
from medcl3d.registry import Choice
from medcl3d.types import Triple

SMALL: list[tuple[str, dict[str, Any], Triple]] = [
    ("resnet3d", {"depth": 10, "width": 0.125}, (32, 32, 96)),
    ("resnet3d", {"depth": 18, "width": 0.125, "max_pool": False, "stem_kernel": 3, "norm": "batch"}, (48, 16, 32)),
    ("resnet3d", {"depth": 50, "width": 0.0625, "stem_stride": 1, "norm": "instance"}, (48, 48, 32)),
    ("unet3d", {"channels": (4, 8, 12), "strides": (1, 2, 2)}, (12, 20, 28)),
    ("unet3d", {"channels": (4, 8, 16), "strides": (1, (1, 2, 2), 2), "blocks": (1, 2, 1), "kernel_sizes": ((1, 3, 3), 3, 3)}, (6, 20, 12)),
    ("unet3d", {"channels": (4, 8), "strides": ((1, 2, 2), 2), "norm": "instance", "act": "gelu"}, (6, 12, 20)),
    ("vit3d", {"patch": (4, 8, 8), "hidden_size": 12, "num_layers": 2}, (8, 24, 16)),
]


@pytest.mark.parametrize("in_channels", [1, 4])
@pytest.mark.parametrize(("name", "fields", "shape"), SMALL)
def test_maps_have_the_declared_channels_and_strides(name: str, fields: dict[str, Any], shape: Triple, in_channels: int) -> None:
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
def test_pooled_features_reach_every_parameter(name: str, fields: dict[str, Any], shape: Triple) -> None:
    encoder = ENCODERS.build(Choice(name, fields), 1)
    encoder(torch.randn(2, 1, *shape)).pooled.square().sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("name", "fields"), [("unet3d", {"channels": (4, 8)}), ("unet3d", {"channels": (), "strides": ()})])
def test_stages_that_do_not_match_are_refused(name: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="channels"):
        ENCODERS.build(Choice(name, fields), 1)


def test_a_kernel_that_skips_voxels_is_refused() -> None:
    with pytest.raises(ConfigError, match="kernel_sizes"):
        UNet3d(1, channels=(4, 8), strides=(1, 2), kernel_sizes=(3, 1))


@pytest.mark.parametrize(("depth", "max_pool", "stem_stride"), [(10, True, 1), (18, False, 2), (50, True, 1)])
def test_equals_monai_resnet_with_the_same_weights(depth: int, max_pool: bool, stem_stride: int) -> None:
    block, layers = BLOCKS[depth]
    widths = [16, 32, 64, 128]
    theirs = ResNet(
        "bottleneck" if depth == 50 else "basic", list(layers), widths, n_input_channels=2, conv1_t_stride=stem_stride,
        no_max_pool=not max_pool, feed_forward=False, bias_downsample=False,
    )  # fmt: skip
    ours = ResNet3d(2, depth=depth, norm="batch", width=0.25, stem_stride=stem_stride, max_pool=max_pool)  # type: ignore[arg-type]
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 2, 32, 32, 32)
    for train in (True, False):
        ours.train(train), theirs.train(train)
        torch.testing.assert_close(ours(x).pooled, theirs(x), rtol=1e-5, atol=1e-5)
    assert ours.num_features == 128 * block.expansion


def test_the_norm_asked_for_is_the_only_one() -> None:
    for norm, kind in (("group", torch.nn.GroupNorm), ("instance", torch.nn.InstanceNorm3d)):
        encoder = ResNet3d(1, depth=10, norm=norm, width=0.125)  # type: ignore[arg-type]
        norms = [m for m in encoder.modules() if "Norm" in type(m).__name__]
        assert norms and all(isinstance(m, kind) for m in norms)


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 8, 12, 20, 31, 64, 96])
def test_groups_divide_the_channels_and_hold_two_or_more(channels: int) -> None:
    groups = norm_layer("group", channels)[1]["num_groups"]
    assert channels % groups == 0 and 1 <= groups <= 8
    assert channels // groups >= 2 or channels == 1
