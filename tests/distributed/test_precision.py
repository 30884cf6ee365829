"""Convolutions in bfloat16 and float32 on this processor have correct gradients on small maps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medcl3d.config.field_types import Choice
from medcl3d.distributed.precision import autocast, autocast_dtype, backends, tf32_used
from medcl3d.encoders.network import build_network

CPU = torch.device("cpu")


def relative(found: Tensor, expected: Tensor) -> float:
    error = float(
        (found.detach().float() - expected.detach().float()).norm() / expected.detach().float().norm()
    )
    return error if error == error else float("inf")


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize(
    "size",
    [(1, 1, 1), (2, 2, 2), (3, 3, 3), (2, 2, 4), (4, 4, 1), (8, 8, 2), (8, 5, 3), (7, 7, 7), (6, 7, 9)],
)
def test_a_convolution_has_the_gradient_of_float64(
    size: tuple[int, int, int], stride: int, kernel: int, dtype: torch.dtype | None
) -> None:
    """Without explicit padding, most in bfloat16 and some in float32 are infinite; some crash."""
    torch.manual_seed(0)
    conv = nn.Conv3d(16, 16, kernel, stride=stride, padding=kernel // 2)
    x = torch.randn(4, 16, *size, requires_grad=True)
    with autocast(CPU, dtype):
        found = conv(x)
    towards = torch.randn(found.shape)
    gradients = torch.autograd.grad((found.float() * towards).sum(), (conv.weight, conv.bias, x))  # type: ignore[arg-type]
    exact = F.conv3d(x.double(), conv.weight.double(), conv.bias.double(), stride, kernel // 2)  # type: ignore[union-attr]
    expected = torch.autograd.grad((exact * towards).sum(), (conv.weight, conv.bias, x))  # type: ignore[arg-type]
    limit = 0.02 if dtype else 1e-4
    assert relative(found, exact) < limit
    assert (
        max(relative(ours, exact_gradient) for ours, exact_gradient in zip(gradients, expected, strict=True))
        < limit
    )


def test_convolutions_compute_in_the_requested_dtype() -> None:
    conv, x = nn.Conv3d(4, 4, 3, padding=1), torch.randn(1, 4, 8, 8, 8)
    for dtype in (torch.bfloat16, None):
        with autocast(CPU, dtype):
            assert conv(x).dtype == conv(x[..., :2]).dtype == (dtype or torch.float32)
            assert conv(x[..., :2]).shape == (1, 4, 8, 8, 2)
            same = nn.Conv3d(4, 4, 3, padding="same", dilation=1)(x[..., :2])
            assert same.shape == (1, 4, 8, 8, 2)
    assert autocast_dtype("float32", CPU) is None and autocast_dtype("bfloat16", CPU) == torch.bfloat16


@pytest.mark.parametrize("encoder", ["resnet3d", "unet3d", "vit3d"])
def test_a_network_has_the_gradient_of_float32(encoder: str) -> None:
    """A crop of 32 voxels is one voxel in the last stage of a ResNet."""
    torch.manual_seed(0)
    fields = {
        "resnet3d": {"depth": 18, "width": 0.25},
        "unet3d": {"channels": [8, 16, 32, 32, 32], "strides": [2, 2, 2, 2, 2]},
        "vit3d": {"num_layers": 2},
    }
    network = build_network(Choice(encoder, fields[encoder]), 1, decoder=False)
    x, gradients = torch.randn(4, 1, 32, 32, 32), []
    for dtype in (None, torch.bfloat16):
        with autocast(CPU, dtype):
            pooled = network(x).pooled
        towards = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(0))
        loss = (pooled.float() * towards).mean()
        gradients.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])
        )
    # Rounding errors of bfloat16 over tens of layers; a wrong gradient differs by 1 or more.
    assert relative(gradients[1], gradients[0]) < 0.35


@pytest.mark.parametrize(
    ("bfloat16", "capability", "expected"),
    [(True, (9, 0), torch.bfloat16), (False, (7, 5), torch.float16), (False, (6, 1), None)],
)
def test_auto_depends_on_what_a_gpu_is_fast_at(
    bfloat16: bool, capability: tuple[int, int], expected: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    gpu = torch.device("cuda", 0)
    assert autocast_dtype("auto", gpu) == expected
    assert tf32_used(True, gpu) == (capability >= (8, 0)) and not tf32_used(False, gpu)
    assert not tf32_used(True, CPU)


def test_settings_of_training_are_restored() -> None:
    cudnn = torch.backends.cudnn
    before = (cudnn.allow_tf32, cudnn.benchmark, torch.are_deterministic_algorithms_enabled())
    with backends(tf32=False, deterministic=True):
        assert not cudnn.allow_tf32 and not cudnn.benchmark
        assert torch.are_deterministic_algorithms_enabled()
    with backends(tf32=True, deterministic=False):
        assert cudnn.allow_tf32 and cudnn.benchmark
    assert (cudnn.allow_tf32, cudnn.benchmark, torch.are_deterministic_algorithms_enabled()) == before
