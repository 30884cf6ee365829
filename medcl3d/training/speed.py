"""Options that reduce the cost of training without changing names, weights or outputs (up to rounding)."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

import torch
from torch import nn

from medcl3d.core.errors import MachineError
from medcl3d.encoders.network import Network
from medcl3d.encoders.recompute import recompute_blocks


def apply_cost_options(
    model: nn.Module, *, checkpointing: bool = False, channels_last: bool = False, compiled: bool = False
) -> None:
    """Apply cost options to the networks inside `model`, in place; the keys of its state do not change.

    checkpointing   recompute activations inside the blocks of the encoder in the backward pass
    channels_last   store 5-D weights and crops with channels last
    compiled        compile networks with torch.compile at their first call

    ConfigError: checkpointing of an encoder without `layers()`. MachineError: no C++ compiler.
    """
    if compiled:
        check_compiler()
    for network in [module for module in model.modules() if isinstance(module, Network)]:
        if checkpointing:
            recompute_blocks(network)
        if channels_last:
            for parameter in network.parameters():
                if parameter.ndim == 5:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
        # Of both parts, since objectives with masked blocks call them one by one.
        for part in (network.encoder, network.decoder):
            if part is not None and channels_last:
                part.register_forward_pre_hook(_channels_last)
            if part is not None and compiled:
                part.compile()


def check_compiler() -> None:
    """MachineError if the C++ compiler of torch.compile is missing, before the first step would fail."""
    wanted = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(wanted) is None:
        problem = f"no C++ compiler found ({wanted})"
        remedy = "install one, set CXX, or set train.compile: false"
        raise MachineError("train.compile", problem, remedy, field="train.compile")


def _channels_last(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    x, *rest = inputs
    return (x.contiguous(memory_format=torch.channels_last_3d), *rest)
