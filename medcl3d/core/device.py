"""Copies to a device for which the CPU does not wait."""

from __future__ import annotations

import torch
from jaxtyping import Shaped
from torch import Tensor


def to_device(tensor: Shaped[Tensor, ...], device: torch.device | str) -> Shaped[Tensor, ...]:
    """The tensor on a device, copied there from the CPU through pinned memory.

    The CPU does not wait for such a copy; that from other memory waits for all earlier work of the device.
    """
    if torch.device(device).type == "cpu" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
