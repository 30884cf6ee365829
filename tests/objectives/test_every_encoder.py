"""A step of every objective with every encoder trains all parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medcl3d.encoders import ENCODERS
from tests.objectives.small import NAMES, SIDE, Step, batch_of

SMALL: dict[str, dict[str, Any]] = {
    "unet3d": {"channels": [4, 8], "strides": [1, 2]},
    "module": {
        "path": "torch.nn:Conv3d",
        "arguments": {"in_channels": 1, "out_channels": 6, "kernel_size": 2, "stride": 2},
        "channels": [6],
        "strides": [2],
    },
    "resnet3d": {"depth": 10, "width": 0.0625, "stem_kernel": 3, "stem_stride": 1, "max_pool": False},
    "swin3d": {
        "patch": [1, 1, 1],
        "feature_size": 6,
        "num_layers": [1, 1, 1, 1],
        "num_heads": [1, 1, 1, 1],
        "window_size": [2, 2, 2],
    },
    "vit3d": {"patch": [4, 4, 4], "hidden_size": 12, "num_layers": 1, "num_heads": 2},
}


def test_all_encoders_are_tested_here() -> None:
    assert set(SMALL) == set(ENCODERS.names())


@pytest.mark.parametrize("encoder", sorted(SMALL))
@pytest.mark.parametrize("name", NAMES)
def test_a_step(name: str, encoder: str) -> None:
    model = Step(name, {encoder: SMALL[encoder]})
    local = 1 if name in ("simclr", "dino", "swav", "byol") and encoder in ("unet3d", "vit3d") else 0
    batch = batch_of(range(4), num_local=local, edge=16 if encoder == "swin3d" else SIDE)
    first = model(batch)
    first.backward()
    assert torch.isfinite(first)
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    without = {key for key, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert trained and not without, "DistributedDataParallel fails on a parameter without a gradient"
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p -= 1e-4 * p.grad / p.grad.norm().clamp(min=1e-12)
    if getattr(model.objective, "queue_size", 0) == 0 and name not in (
        "swav",
        "dino",
    ):  # with these, the queue or centre has changed
        assert model(batch) < first, f"the gradient of {name} descends"
