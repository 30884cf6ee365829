"""Every objective learns from its pairs, and does not with a wrong sign.

The known factor is the position in a simulated scan: in batches not used in training, the frozen features of
an item's
partner in the other view must be nearer than those of other samples' items.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from medcl3d.config.loading import parse
from medcl3d.objectives import OBJECTIVES
from medcl3d.objectives.dense import point_features, point_keys
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.parts import Pretraining, assemble
from medcl3d.sampling.augment import make_views

STEPS, LONG = 40, 150
UNSEEN = range(10_000, 10_008)  # steps far beyond training: other crops, other augmentation
POINTWISE = ("dense", "global_dense", "distance_regression")
PAINTED = ("mae",)
# Momentum encoders and queues adapted to a short training.
FIELDS: dict[str, dict[str, Any]] = {
    "moco": {"momentum": 0.9, "queue_size": 64},
    "byol": {"momentum": 0.9},
    "dino": {"momentum": 0.9},
}
FAST = ("simclr",)


def parts_of(store: Path, objective: str, steps: int) -> Pretraining:
    pairs = "voxel_correspondence" if objective in POINTWISE else "overlapping_crops"
    config = {
        "data": {"root": str(store), "patch_size": [16, 16, 16]},
        "pairs": {pairs: {"min_iou": 0.5, "max_iou": 0.9}},
        "views": {"mri": {"cutout_probability": 0, "gamma_inverted": 0}},
        "encoder": {"unet3d": {"channels": [8, 16, 32], "strides": [1, 2, 2]}},
        "objective": {objective: FIELDS.get(objective, {})},
        "train": {"steps": steps, "samples_per_step": 8, "precision": "float32"},
        "out_dir": "unused",
    }
    return assemble(parse(config, PretrainConfig, "test"))


@torch.no_grad()
def partner_nearer(parts: Pretraining, objective: str) -> float:
    """Probability that the partner is nearer than an item of another sample, in frozen features: 0.5 is
    chance.
    """
    parts.learner.eval()
    return sum(_nearer_in_step(parts, objective, step) for step in UNSEEN) / len(UNSEEN)


def _nearer_in_step(parts: Pretraining, objective: str, step: int) -> float:
    batch = make_views(parts.dataset()[step], parts.learner.recipe)
    features = parts.learner.network(batch.main.voxels)
    if objective in ("dense", "distance_regression"):  # other objectives are evaluated on views
        assert batch.points is not None and features.decoded is not None
        keys = point_keys(batch.main, batch.points)
        valid = torch.isfinite(keys.position_mm).all(1)
        vectors, keys = (
            point_features(features.decoded, batch.main, batch.points).flatten(0, 1)[valid],
            keys[valid],
        )
    else:
        vectors, keys = features.pooled, batch.main.keys
    z = F.normalize(vectors - vectors.mean(0), dim=1)  # subtract the common part
    similarity = z @ z.T
    partner = (
        (keys.sample[:, None] == keys.sample)
        & (keys.point[:, None] == keys.point)
        & (keys.view[:, None] != keys.view)
    )
    other = keys.sample[:, None] != keys.sample
    rank = [
        (similarity[i, other[i]] < similarity[i, partner[i]]).float().mean()
        for i in range(len(z))
        if partner[i].any()
    ]
    return float(torch.stack(rank).mean())


def train(parts: Pretraining, sign: float) -> None:
    optimizer: Any = torch.optim.AdamW(parts.learner.parameters(), lr=3e-3)
    dataset, steps = parts.dataset(), parts.config.train.steps
    parts.learner.train()
    for step in range(steps):
        parts.learner.before_step(step, steps)
        loss = sign * parts.learner(dataset[step]).value
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parts.learner.parameters(), 1.0)
        optimizer.step()
        parts.learner.after_step()


def slow_but_for(fast: tuple[str, ...]) -> list[Any]:
    names = [name for name in OBJECTIVES.names() if name not in PAINTED]
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("objective", slow_but_for(FAST))
def test_an_objective_learns_and_one_with_a_wrong_sign_does_not(tiny_store: Path, objective: str) -> None:
    found = {}
    for name, sign in (("right", 1.0), ("broken", -1.0)):
        parts = parts_of(tiny_store, objective, STEPS if objective in (*FAST, *POINTWISE) else LONG)
        untrained = partner_nearer(parts, objective)
        train(parts, sign)
        found[name] = partner_nearer(parts, objective)
    assert found["right"] > untrained + 0.1, (found, untrained)
    assert found["broken"] < found["right"] - 0.05, (found, untrained)


@pytest.mark.slow
def test_masked_blocks_are_reconstructed_better_than_by_their_mean(tiny_store: Path) -> None:
    found = {}
    for name, sign in (("right", 1.0), ("broken", -1.0)):
        parts = parts_of(tiny_store, "mae", STEPS)
        train(parts, sign)
        batch = make_views(parts.dataset()[UNSEEN[0]], parts.learner.recipe)
        with torch.no_grad():
            found[name] = float(
                parts.learner.objective.embed(parts.learner.network, batch)["online"].z.mean()
            )
        mean_alone = float(batch.main.voxels.var())
    assert found["right"] < 0.8 * mean_alone < found["broken"], (found, mean_alone)
