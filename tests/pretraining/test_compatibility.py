"""A strategy with an objective that cannot use its relation is refused before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from medcl3d.core.errors import ConfigError
from tests.pretraining.test_points_of_samples import parts_of

POINTS = ["voxel_correspondence", {"body_position": {"alpha": 1, "sigma_mm": 30, "h_mm": 10}}]


@pytest.mark.parametrize(
    "objective", ["swav", "dino", "barlow_twins", "vicreg", {"moco": {"queue_size": 64}}]
)
def test_neighbours_in_a_queue_need_an_objective_that_reads_it(tiny_store: Path, objective: Any) -> None:
    with pytest.raises(ConfigError, match="needs an embedding queue, which the objective does not support"):
        parts_of(tiny_store, "nearest_neighbours", objective)


@pytest.mark.parametrize("objective", ["simclr", "byol", "simsiam", {"moco": {"queue_size": 0}}])
def test_objectives_that_read_a_queue_are_accepted(tiny_store: Path, objective: Any) -> None:
    parts_of(tiny_store, "nearest_neighbours", objective)


@pytest.mark.parametrize(
    ("pairs", "problem"),
    [
        ({"hard_negatives": {"inner": "overlapping_crops"}}, "depends on features of crops"),
        ({"exclude": {"inner": "overlapping_crops"}}, "only negatives of crops are excluded"),
        (
            {"product": {"parts": ["overlapping_crops", {"exclude": {"inner": "overlapping_crops"}}]}},
            "only negatives of crops are excluded",
        ),
        ({"sum": {"parts": [*POINTS, "overlapping_crops"]}}, "some parts relate points and others crops"),
        ({"product": {"parts": [POINTS[1], "same_patient"]}}, "some parts relate points and others crops"),
    ],
)
def test_an_objective_of_points_needs_a_relation_of_points(
    tiny_store: Path, pairs: Any, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        parts_of(tiny_store, pairs, {"dense": {"num_points": 4}})
    parts_of(tiny_store, pairs, "simclr")


@pytest.mark.parametrize(
    "pairs",
    [
        {"hard_negatives": {"inner": "voxel_correspondence"}},
        {"exclude": {"inner": POINTS[1]}},
        {"sum": {"parts": POINTS}},
        {"product": {"parts": POINTS}},
    ],
)
def test_a_strategy_that_passes_points_on_is_accepted(tiny_store: Path, pairs: Any) -> None:
    parts_of(tiny_store, pairs, {"dense": {"num_points": 4}})


def test_parts_of_a_sum_draw_the_same_views(tiny_store: Path) -> None:
    three = {"overlapping_crops": {"num_views": 3}}
    with pytest.raises(
        ConfigError, match=r"sum: part 1 draws views global, global, global, and part 0 global"
    ):
        parts_of(tiny_store, {"sum": {"parts": ["overlapping_crops", three]}}, "simclr")


@pytest.mark.parametrize(
    "objective", ["simclr", "byol", "simsiam", "barlow_twins", "vicreg", "swav", "dino", "moco", "dense"]
)
def test_losses_are_computed_in_float32_under_autocast(
    tiny_store: Path, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A product of bfloat16 selects other neighbours, and rounds what a loss minimises."""
    parts = parts_of(tiny_store, "augmented_views", objective)
    learner, found = parts.learner, []
    loss_of = learner.objective.loss

    def loss(embedded: Any, relating: Any) -> Any:
        found.append(embedded["online"].z)
        found.append(found[0] @ found[0].T)
        return loss_of(embedded, relating)

    monkeypatch.setattr(learner.objective, "loss", loss)
    with torch.autocast("cpu", torch.bfloat16):
        value = learner(parts.dataset()[0]).value
    assert [one.dtype for one in (*found, value)] == [torch.float32] * 3
