"""Weighted sum of losses."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from medcl3d.core.embeddings import Loss


def weighted(parts: Mapping[str, tuple[float, Loss]]) -> Loss:
    """The weighted sum of losses by name; logs ``loss/NAME`` of each, and the other metrics of the first."""
    value = torch.stack([weight * part.value for weight, part in parts.values()]).sum()
    mean = torch.stack([weight * part.metrics["loss"] for weight, part in parts.values()]).sum()
    first = next(iter(parts.values()))[1].metrics
    losses = {f"loss/{name}": part.metrics["loss"] for name, (_, part) in parts.items()}
    return Loss(value, {**first, "loss": mean, **losses})
