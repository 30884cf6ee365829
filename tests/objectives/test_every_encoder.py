"""A step of every objective with every encoder trains all parameters."""

from __future__ import annotations

import pytest
import torch

from medcl3d.encoders import ENCODERS
from tests.objectives.small import NAMES, SIDE, Step, batch_of
from tests.pretend.steps import ENCODERS as SMALL_ENCODERS


def test_all_encoders_are_tested_here() -> None:
    assert set(SMALL_ENCODERS) == set(ENCODERS.names())


@pytest.mark.parametrize("encoder", sorted(SMALL_ENCODERS))
@pytest.mark.parametrize("name", NAMES)
def test_a_step(name: str, encoder: str) -> None:
    model = Step(name, {encoder: SMALL_ENCODERS[encoder]})
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
