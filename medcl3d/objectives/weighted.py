"""Weighted sum of losses."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from medcl3d.core.embeddings import Loss


def weighted(parts: Mapping[str, tuple[float, Loss]]) -> Loss:
    """The weighted sum of losses by name.

    Logs ``loss/NAME`` of each; any other metric is that of the first part that has it.
    """
    value = torch.stack([weight * part.value for weight, part in parts.values()]).sum()
    mean = torch.stack([weight * part.metrics["loss"] for weight, part in parts.values()]).sum()
    metrics: dict[str, torch.Tensor] = {}
    for _, part in reversed(list(parts.values())):
        metrics |= part.metrics
    losses = {f"loss/{name}": part.metrics["loss"] for name, (_, part) in parts.items()}
    required = tuple(one for _, part in parts.values() for one in part.required)
    return Loss(value, {**metrics, "loss": mean, **losses}, required)
