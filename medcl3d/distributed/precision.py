"""Numerical precision of networks, and a workaround for wrong gradients of convolutions on CPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Precision = Literal["auto", "float32", "bfloat16"]
Steps = int | Sequence[int]


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast; None for float32. `auto` is bfloat16 if the device supports it natively."""
    if precision == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        precision = "bfloat16" if fast else "float32"
    return torch.bfloat16 if precision == "bfloat16" else None


def precision_used(precision: Precision, device: torch.device) -> str:
    """The precision used on a device: float32 or bfloat16."""
    return str(autocast_dtype(precision, device) or torch.float32).removeprefix("torch.")


@contextmanager
def autocast(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Autocast to `dtype` (None: float32), with the workaround for convolutions on x86 processors."""
    with (
        small_maps_padded_first(device.type),
        torch.autocast(device.type, dtype=dtype, enabled=dtype is not None),
    ):
        yield


def small_maps_padded_first(device_type: str) -> AbstractContextManager[Any]:
    """Context manager with correct gradients of convolutions on small maps; it can be nested."""
    return _SmallMapsPaddedFirst() if device_type == "cpu" else nullcontext()


class _SmallMapsPaddedFirst(TorchFunctionMode):
    """Pad small maps before a 3-D convolution whose kernel covers the whole map.

    If the convolution pads the map itself, the gradient of its weights is read out of bounds: it is infinite,
    or finite and wrong, or the process crashes. Observed with torch 2.13 (oneDNN) on an x86 processor with
    avx512_bf16 and without AMX: in bfloat16 for kernels of 3 on maps of 2 voxels, in float32 for kernels of 7
    on maps of 6 or 7. The forward pass and the gradient of the input are correct. Test cases:
    tests/distributed/test_precision.py.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.conv3d and not kwargs:
            args = _padded_first(*args)
        return func(*args, **(kwargs or {}))


def _padded_first(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Steps = 1,
    padding: Steps | str = 0,
    dilation: Steps = 1,
    groups: int = 1,
) -> tuple[Any, ...]:
    """Equivalent arguments of ``F.conv3d``; a small map is padded explicitly, and the padding set to 0."""
    if isinstance(padding, str):
        return x, weight, bias, stride, padding, dilation, groups
    steps, pads = ((v,) * 3 if isinstance(v, int) else tuple(v) for v in (stride, padding))
    small = any(
        p and n < k + s - 1 for n, k, s, p in zip(x.shape[2:], weight.shape[2:], steps, pads, strict=True)
    )
    if not small:
        return x, weight, bias, stride, padding, dilation, groups
    both_sides = [p for pad in reversed(pads) for p in (pad, pad)]  # F.pad starts with the last axis
    return F.pad(x, both_sides), weight, bias, stride, 0, dilation, groups
