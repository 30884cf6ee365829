"""MONAI's weights load into our networks and ours into MONAI's, with equal outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.resnet import ResNet
from monai.networks.nets.senet import SEResNet50
from monai.networks.nets.swin_unetr import SwinUNETR
from torch import Tensor, nn

from medcl3d.encoders.resnet3d import BLOCKS, ResNet3d
from medcl3d.encoders.swin3d import Swin3d
from medcl3d.encoders.unet3d import UNet3d

State = Mapping[str, Tensor]


def both_ways(
    ours: nn.Module,
    theirs: nn.Module,
    to_ours: Callable[[State], State],
    to_theirs: Callable[[State], State],
    same: Callable[[], None],
) -> None:
    """Load MONAI's weights into ours and compare; change ours, load them into MONAI's and compare again."""
    ours.load_state_dict(to_ours(theirs.state_dict()), strict=True)
    same()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.mul_(1.02)
    with pytest.raises(AssertionError):
        same()
    assert not theirs.load_state_dict(to_theirs(ours.state_dict()), strict=False).unexpected_keys
    same()


def as_it_is(state: State) -> State:
    return state


@pytest.mark.parametrize(
    ("depth", "max_pool", "stem_stride"),
    [(10, True, 1), (18, False, 2), (18, True, 2), (34, True, 2), (50, True, 1)],
)
def test_resnet(depth: Any, max_pool: bool, stem_stride: Any) -> None:
    block, layers = BLOCKS[depth]
    theirs = ResNet(
        "bottleneck" if depth == 50 else "basic", list(layers), [8, 16, 32, 64], n_input_channels=2,
        conv1_t_stride=stem_stride,
        no_max_pool=not max_pool, feed_forward=False, bias_downsample=False,
    )  # fmt: skip
    ours = ResNet3d(2, depth=depth, norm="batch", width=0.125, stem_stride=stem_stride, max_pool=max_pool)
    x = torch.randn(2, 2, 32, 32, 32)

    def same() -> None:
        for train in (True, False):
            ours.train(train), theirs.train(train)
            torch.testing.assert_close(ours(x).pooled, theirs(x), rtol=1e-5, atol=1e-5)

    both_ways(ours, theirs, as_it_is, as_it_is, same)
    assert ours.num_features == 64 * block.expansion


def test_se_resnet() -> None:
    theirs, ours = (
        SEResNet50(spatial_dims=3, in_channels=1),
        ResNet3d(1, depth=50, norm="batch", squeeze_excitation=True),
    )
    x = torch.randn(1, 1, 32, 32, 32)
    stem = ("conv1.", "bn1.")

    def same() -> None:
        ours.eval(), theirs.eval()
        with torch.no_grad():
            torch.testing.assert_close(ours(x).maps[-1], theirs.features(x), rtol=1e-5, atol=1e-5)

    both_ways(
        ours,
        theirs,
        lambda state: {
            name.removeprefix("layer0."): value
            for name, value in state.items()
            if not name.startswith("last_linear")
        },
        lambda state: {
            f"layer0.{name}" if name.startswith(stem) else name: value for name, value in state.items()
        },
        same,
    )


@pytest.mark.parametrize("v2", [False, True])
def test_swin_unetr(v2: bool) -> None:
    """Windows of 3 on grids that they do not divide, shifted and padded, and windows of 7 on smaller
    grids.
    """
    theirs = SwinUNETR(2, 1, feature_size=12, window_size=3, use_v2=v2)
    ours = Swin3d(2, feature_size=12, window_size=(3, 3, 3), v2=v2)
    x = torch.randn(1, 2, 32, 64, 32)

    def same() -> None:
        with torch.no_grad():
            for found, expected in zip(ours(x).maps, theirs.swinViT(x, theirs.normalize), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    both_ways(
        ours,
        theirs,
        lambda state: {k: v for k, v in state.items() if k.startswith("swinViT.")},
        as_it_is,
        same,
    )


@pytest.mark.parametrize("residual", [False, True])
def test_dynunet(residual: bool) -> None:
    kernels, strides, filters = [[1, 3, 3], 3, 3, 3], [1, [1, 2, 2], 2, 2], [4, 8, 8, 12]
    theirs = DynUNet(3, 2, 1, kernels, strides, strides[1:], filters=filters, res_block=residual)
    ours = UNet3d(
        2,
        channels=tuple(filters),
        strides=(1, (1, 2, 2), 2, 2),
        kernel_sizes=((1, 3, 3), 3, 3, 3),
        norm="instance",
        residual=residual,
    )
    blocks = ["input_block", "downsamples.0", "downsamples.1", "bottleneck"]
    x = torch.randn(1, 2, 8, 16, 16)

    def to_ours(state: State) -> State:
        return {
            name.replace(f"{block}.", f"stages.{i}.0.", 1): value
            for i, block in enumerate(blocks)
            for name, value in state.items()
            if name.startswith(f"{block}.")
        }

    def to_theirs(state: State) -> State:
        return {
            f"{blocks[int(name.split('.')[1])]}.{name.split('.', 3)[3]}": value
            for name, value in state.items()
        }

    def same() -> None:
        with torch.no_grad():
            map_of_theirs = theirs.input_block(x)
            for found, block in zip(
                ours(x).maps, [None, *theirs.downsamples, theirs.bottleneck], strict=True
            ):
                map_of_theirs = map_of_theirs if block is None else block(map_of_theirs)
                torch.testing.assert_close(found, map_of_theirs, rtol=1e-5, atol=1e-5)

    both_ways(ours, theirs, to_ours, to_theirs, same)
