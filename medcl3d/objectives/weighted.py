"""Several losses as one."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from medcl3d.types import Loss


def weighted(parts: Mapping[str, tuple[float, Loss]]) -> Loss:
    """The weighted sum of losses by name; each logs its own ``loss/NAME``, and the first one's metrics stand for all."""
    value = torch.stack([weight * part.value for weight, part in parts.values()]).sum()
    mean = torch.stack([weight * part.metrics["loss"] for weight, part in parts.values()]).sum()
    first = next(iter(parts.values()))[1].metrics
    return Loss(value, {**first, "loss": mean, **{f"loss/{name}": part.metrics["loss"] for name, (_, part) in parts.items()}})
