"""Running statistics of batch norms, which a step that is skipped must not change."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class RunningStatistics:
    """The running means and variances of a model's batch norms, as they were after the last valid step.

    A forward pass blends the statistics of its batch into them. If an activation was not finite, they would
    stay so, and a trained network would compute NaN in evaluation.
    """

    def __init__(self, model: nn.Module):
        norms = (one for one in model.modules() if _has_statistics(one))
        self._now = [
            buffer for norm in norms for buffer in norm.buffers(recurse=False) if buffer.is_floating_point()
        ]
        self._valid = [buffer.clone() for buffer in self._now]

    @torch.no_grad()
    def after_step(self, is_valid: bool) -> None:
        """Keep the present statistics if the step was valid; else set them back."""
        first, second = (self._valid, self._now) if is_valid else (self._now, self._valid)
        if first:
            torch._foreach_copy_(first, second)


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) or bool(getattr(module, "batch_statistics", False))
