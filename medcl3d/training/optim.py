"""The optimiser, its parameter groups, and the learning rate schedule."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import nn

from medcl3d.encoders.network import Network, layers_of
from medcl3d.training.lars import LARS

OptimizerName = Literal["adamw", "sgd", "lars"]
BETAS = (0.9, 0.999)
DEFAULT_MOMENTUM = 0.9
FUSED_DEVICES = ("cpu", "cuda")
# Parameters with several axes that are not weights: they are added to activations, or used as tokens.
NO_WEIGHTS = ("registers", "relative_position_bias_table", "position_embeddings")


def build_optimizer(
    model: nn.Module,
    name: OptimizerName,
    *,
    lr: float,
    weight_decay: float,
    momentum: float | None = None,
    nesterov: bool = False,
    layer_decay: float | None = None,
) -> torch.optim.Optimizer:
    """An optimiser for the trainable parameters of `model`.

    adamw  Loshchilov and Hutter, ICLR 2019
    sgd    with momentum (default 0.9), optionally Nesterov
    lars   You et al. 2017, with momentum (default 0.9)

    ConfigError if `layer_decay` is set for an encoder without `layers()`.
    """
    groups = parameter_groups(model, weight_decay, layer_decay)
    if name == "adamw":
        # One pass over the parameters takes a third of the time of one operation after the other.
        fused = all(p.device.type in FUSED_DEVICES for group in groups for p in group["params"])
        return torch.optim.AdamW(groups, lr=lr, betas=BETAS, fused=fused)
    momentum = DEFAULT_MOMENTUM if momentum is None else momentum
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)
    for group in groups:
        group["adapts"] = group["decays"]
    return LARS(groups, lr=lr, momentum=momentum)


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Trainable parameters, with and without weight decay; with `layer_decay` by layer, deepest first.

    Norms, biases, tokens and learned positions are not decayed, since they do not multiply activations. With
    `layer_decay`, the rate of an encoder layer is ``layer_decay ** (number of layers - its depth)`` of the
    full rate (`lr_share` of a group). The embedding has depth 0. Parameters outside all layers (last norm,
    decoder, head, projector) have the full rate.
    Source: Clark et al. 2020, ELECTRA, appendix A; Bao et al. 2022, BEiT, for images.
    """
    shares = {} if layer_decay is None else _shares(model, layer_decay)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = []
    for share in sorted({shares.get(name, 1.0) for name, _ in trained}, reverse=True):
        own = [(name, p) for name, p in trained if shares.get(name, 1.0) == share]
        for decays in (True, False):
            parameters = [p for name, p in own if is_decayed(name, p) == decays]
            if parameters:
                # Checkpoints depend on this order: a resumed run assigns optimiser moments by position.
                groups.append(
                    {
                        "params": parameters,
                        "weight_decay": weight_decay if decays else 0.0,
                        "decays": decays,
                        "lr_share": share,
                    }
                )
    return groups


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to a parameter: only to weights that multiply activations."""
    last = name.rpartition(".")[2]
    return parameter.ndim > 1 and last not in NO_WEIGHTS and not last.endswith("_token")


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of each group to its share of `rate`.

    1 for groups of older checkpoints without a share.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_share", 1.0)


def lr_factor(step: int, steps: int, warmup_steps: int) -> float:
    """Fraction of the full rate at `step`: linear warm-up, then cosine decay to 0 at `steps`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _shares(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """Share of the rate of each parameter in a layer, by name."""
    shares: dict[str, float] = {}
    for prefix, network in model.named_modules():
        if not isinstance(network, Network):
            continue
        layers = layers_of(network, "layer_decay")
        depth_of = {module: depth for depth, modules in enumerate(layers) for module in modules}
        for name, _ in network.encoder.named_parameters():
            depth = next((d for m, d in depth_of.items() if f"{name}.".startswith(f"{m}.")), None)
            if depth is not None:
                share = layer_decay ** (len(layers) - depth)
                shares[".".join(filter(None, (prefix, "encoder", name)))] = share
    return shares
