"""Numerical precision of networks, and a workaround for wrong gradients of convolutions on CPUs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Precision = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
FAST_FLOAT16 = (7, 0)  # compute capability of GPUs with tensor cores for float16
Steps = int | Sequence[int]


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast; None for float32.

    `auto` is bfloat16 if the device supports it natively, else float16 on GPUs with tensor cores for it. It
    depends on the device only, not on a measurement, whose outcome may be another on another day or rank:
    `medcl3d doctor CONFIG` measures the network, and names the field to set if float32 is faster.
    """
    return DTYPES[_natively(device) if precision == "auto" else precision]


def _natively(device: torch.device) -> Literal["float32", "bfloat16", "float16"]:
    """The fastest precision of a device that suits training."""
    if device.type != "cuda":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "bfloat16" if fast else "float32"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16"
    return "float16" if torch.cuda.get_device_capability(device) >= FAST_FLOAT16 else "float32"


def tf32_used(wanted: bool, device: torch.device) -> bool:
    """Whether float32 convolutions are computed in TF32."""
    return wanted and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


@contextmanager
def backends(*, tf32: bool, deterministic: bool) -> Iterator[None]:
    """Settings of torch during training, restored afterwards.

    tf32           float32 convolutions in TF32 on GPUs that have it; matrix products never are, since losses
                   need their digits
    deterministic  algorithms with the same result in each run; operations without one give a warning
    """
    cudnn, before = torch.backends.cudnn, torch.are_deterministic_algorithms_enabled()
    saved, warned = (cudnn.allow_tf32, cudnn.benchmark), torch.is_deterministic_algorithms_warn_only_enabled()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    # All crops of a run have one shape, so the fastest algorithm is worth a search.
    cudnn.allow_tf32, cudnn.benchmark = tf32, not deterministic
    if deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.benchmark = saved
        torch.use_deterministic_algorithms(before, warn_only=warned)


def precision_used(precision: Precision, device: torch.device) -> str:
    """The precision used on a device: float32, bfloat16 or float16."""
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
