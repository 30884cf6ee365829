"""Recompute activations of blocks in the backward pass to save memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from medcl3d.distributed.precision import small_maps_padded_first
from medcl3d.encoders.network import Network, layers_of

Surrounding = Callable[[], AbstractContextManager[None]]
_SURROUNDINGS: ContextVar[tuple[Surrounding, ...]] = ContextVar("surroundings", default=())


@contextmanager
def in_recomputation(surrounding: Surrounding) -> Iterator[None]:
    """Enter `surrounding` again when the backward pass recomputes blocks that were computed inside."""
    token = _SURROUNDINGS.set((*_SURROUNDINGS.get(), surrounding))
    try:
        yield
    finally:
        _SURROUNDINGS.reset(token)


def recompute_blocks(network: Network) -> None:
    """Recompute activations of encoder blocks in the backward pass (Chen et al. 2016)."""
    named = dict(network.encoder.named_modules())
    names = (name for layer in layers_of(network, "checkpointing") for name in layer)
    for module in [named[name] for name in names if name in named]:
        # A single convolution or norm stores only its input, which is stored in any case.
        if any(True for _ in module.children()):
            module.forward = _Recomputed(module.forward)  # type: ignore[method-assign]


class _Recomputed:
    """The forward pass of a module without stored inner activations; a copy of the module gets its own."""

    def __init__(self, forward: Callable[..., Any]):
        self.forward = forward

    def __call__(self, *inputs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*inputs)
        if torch.compiler.is_compiling():  # compiled code updates statistics once, even if it recomputes
            return checkpoint(self.forward, *inputs, use_reentrant=False)
        surroundings = _SURROUNDINGS.get()
        return checkpoint(
            self._padded,
            *inputs,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), self._again(surroundings)),
        )

    def _padded(self, *inputs: Any) -> Any:
        # The recomputation runs in the backward pass, after the autocast of the step and with it this mode
        # have ended.
        with small_maps_padded_first(inputs[0].device.type):
            return self.forward(*inputs)

    @contextmanager
    def _again(self, surroundings: tuple[Surrounding, ...]) -> Iterator[None]:
        """Context of the recomputation: the surroundings of the first pass, and unchanged statistics."""
        with ExitStack() as stack:
            for surrounding in surroundings:
                stack.enter_context(surrounding())
            stack.enter_context(self._unchanged_statistics())
            yield

    @contextmanager
    def _unchanged_statistics(self) -> Iterator[None]:
        """Keep running statistics of batch norms unchanged during the recomputation."""
        module: nn.Module = self.forward.__self__  # type: ignore[attr-defined]
        norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
        before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
        counts = [None if count is None else count.clone() for *_, count in before]
        for norm in norms:
            # Switching tracking off would save other tensors than the first pass, which torch refuses.
            norm.momentum = 0.0
        try:
            yield
        finally:
            for (norm, momentum, count), was in zip(before, counts, strict=True):
                norm.momentum = momentum
                if count is not None and was is not None:
                    count.copy_(was)
