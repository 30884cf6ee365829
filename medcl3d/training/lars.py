"""LARS: an optimiser with one rate per layer, for training with very large batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

TRUST = 1e-3  # eta in the paper: the fraction of a weight's norm that one step may change


class LARS(torch.optim.Optimizer):
    """SGD with momentum on gradients scaled to the norm of their weights. Algorithm 1, for each weight w::

        rate  = trust * |w| / (|g| + weight_decay * |w|)        (eq. 6)
        v     = momentum * v + lr * rate * (g + weight_decay * w)
        w     = w - v

    The rate is 1 if `adapts` of a group is off (norms and biases, whose norm is small or 0), or if |w| or |g|
    is 0. Source: You, Gitman and Ginsburg 2017, Large Batch Training of Convolutional Networks; Chen et al.
    2020, SimCLR, for the exclusion of norms and biases.
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "adapts": True})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # closures are not supported
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "velocity" not in state:
                    state["velocity"] = torch.zeros_like(weight)
                velocity = state["velocity"]
                step = weight.grad.add(weight, alpha=group["weight_decay"])
                if group["adapts"]:
                    step.mul_(_rate(weight, weight.grad, group["weight_decay"]))
                velocity.mul_(group["momentum"]).add_(step, alpha=group["lr"])
                weight.sub_(velocity)


def _rate(weight: Tensor, gradient: Tensor, weight_decay: float) -> Tensor:
    """Equation 6, as a scalar on the device."""
    weight_norm, gradient_norm = weight.norm(), gradient.norm()
    rate = TRUST * weight_norm / (gradient_norm + weight_decay * weight_norm)
    return torch.where((weight_norm > 0) & (gradient_norm > 0), rate, torch.ones_like(rate))
