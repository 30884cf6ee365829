"""Memory that a network needs for training, from shapes alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from medcl3d.encoders.network import Network, forward_flops


def activation_bytes(
    network: Network, in_channels: int, patch_size: Sequence[int], dtype: torch.dtype | None
) -> int:
    """Bytes per crop that the forward pass stores for the backward pass.

    A tensor that is stored twice counts once; weights do not count. Only shapes are propagated, in
    PyTorch's `FakeTensorMode`. Transient buffers, as the workspace of a convolution, are not included.

    dtype  of autocast; None for float32
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # imported here: it takes seconds

    forward_flops(network, in_channels, patch_size)  # constants that a network caches are real from here on
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    state = (*network.named_parameters(), *network.named_buffers())
    fake: dict[str, Tensor] = {name: mode.from_tensor(tensor) for name, tensor in state}
    weights = {tensor.untyped_storage()._cdata for tensor in fake.values()}
    stored: dict[int, tuple[Tensor, int]] = {}  # with the tensors, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        stored[storage._cdata] = (tensor, storage.nbytes())
        return tensor

    with (
        mode,
        saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=dtype, enabled=dtype is not None),
    ):
        crops = torch.empty((2, in_channels, *patch_size))  # batch norm needs two values
        functional_call(network, fake, (crops,))
    return sum(size for key, (_, size) in stored.items() if key not in weights) // len(crops)
