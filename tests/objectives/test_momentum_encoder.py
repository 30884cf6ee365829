"""Momentum encoders and stop-gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from medcl3d.objectives import OBJECTIVES
from medcl3d.objectives.momentum_encoder import MomentumEncoder, Schedule, momentum_at
from tests.objectives.small import UNET, Step, batch_of, network_of

FOLLOWED = ("byol", "moco", "dino")
FIXED = {"byol": "target", "simsiam": "target", "moco": "target", "dino": "target", "swav": "large"}


def test_a_teacher_is_an_exponential_moving_average() -> None:
    student = nn.BatchNorm1d(2)
    teacher = MomentumEncoder(student)
    with torch.no_grad():
        student.weight.fill_(5.0)
        student.running_mean.fill_(3.0)  # type: ignore[union-attr, operator]
    teacher.follow(0.9, student)
    copy = teacher.copies[0]
    assert torch.allclose(copy.weight, torch.full((2,), 0.9 * 1 + 0.1 * 5)), "an average of weights"
    assert torch.equal(copy.running_mean, student.running_mean), "buffers are copied"
    assert not any(p.requires_grad for p in teacher.parameters()) and student.weight.requires_grad


def test_momentum_rises_to_one() -> None:
    found = [momentum_at(step, 100, 0.9) for step in range(101)]
    assert found[0] == pytest.approx(0.9) and found[50] == pytest.approx(0.95) and found[100] == 1
    assert found == sorted(found)


@pytest.mark.parametrize("name", FOLLOWED)
def test_an_objectives_teacher_follows_its_network_and_head(name: str) -> None:
    model = Step(name)
    objective = model.objective
    before = [p.clone() for p in objective.teacher.parameters()]
    with torch.no_grad():
        for p in [*model.network.parameters(), *objective.projector.parameters()]:
            p += 1
    objective.before_step(0, 10)
    objective.after_step(model.network)
    moved = [
        float((after - b).mean()) for after, b in zip(objective.teacher.parameters(), before, strict=True)
    ]
    share = 1 - objective.momentum
    assert 0 < share < 0.5
    assert [round(m, 6) for m in moved if m] == [round(share, 6)] * (len(moved) - (name == "dino")), (
        "except dino's frozen prototypes"
    )


@pytest.mark.parametrize(("name", "rows"), FIXED.items())
def test_targets_have_no_gradient(name: str, rows: str) -> None:
    model = Step(name)
    embedded = model.objective.embed(model.network, batch_of(range(3)))
    assert embedded["online"].z.requires_grad and not embedded[rows].z.requires_grad


SCHEDULES = {
    "byol": Schedule(None, published=0.996),
    "dino": Schedule(None, published=0.996),
    "moco": Schedule(None, published=0.999, rises=False),
    "moco, rising": Schedule(None, published=0.99),
}


def built(name: str, **fields: Any) -> Any:
    """An objective with its defaults."""
    objective, _, rises = name.partition(", ")
    rising = {"momentum_rises": True} if rises else {}
    return OBJECTIVES.get(objective)(network_of(UNET, False), **rising, **fields)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_default_momentum_leaves_one_percent_of_the_random_initialisation(name: str) -> None:
    """Simulate a teacher with one weight, from 1 towards a student at 0."""
    objective, published = built(name), SCHEDULES[name].published
    assert objective.schedule == SCHEDULES[name]
    before = 0.0
    for steps in (50, 100, 200, 500, 1_000, 5_000, 20_000, 100_000):
        left = 1.0
        momenta = []
        for step in range(steps):
            objective.before_step(step, steps)
            momenta.append(objective.momentum)
            left *= objective.momentum
        assert left <= 0.01 and left == pytest.approx(objective.schedule.left(steps))
        assert momenta == sorted(momenta)
        assert before <= momenta[0] <= published, (
            "a longer run starts with a higher momentum, up to the published one"
        )
        assert momenta[0] == published or left > 0.004, "no lower than necessary"
        before = momenta[0]
    assert before == published


def test_a_teacher_holds_the_scheduled_fraction_of_its_initialisation() -> None:
    student = nn.Linear(3, 3)
    teacher, schedule = MomentumEncoder(student), Schedule(None, published=0.996)
    with torch.no_grad():
        teacher.copies[0].weight.fill_(1.0)
        student.weight.zero_()
    for step in range(60):
        teacher.follow(schedule.at(step, 60), student)
    torch.testing.assert_close(
        teacher.copies[0].weight, torch.full((3, 3), schedule.left(60)), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_given_momentum_is_used_exactly(name: str) -> None:
    """As in run folders with the earlier default."""
    objective = built(name, momentum=0.99)
    for step in range(200):
        objective.before_step(step, 200)
        assert objective.momentum == (0.99 if name == "moco" else momentum_at(step, 200, 0.99))


def test_a_momentum_that_leaves_much_of_the_initialisation_is_a_warning() -> None:
    (warning,) = built("byol", momentum=0.99).notes(200)
    assert warning == (
        "warning: objective.byol: momentum = 0.99: 36% of the teacher's random initialisation is left in "
        "it after train.steps = 200; "
        "leave momentum out (0.9542 is then chosen), or lower it"
    )
    assert built("byol", momentum=0.99).notes(500) == [] and built("byol", momentum=0.95).notes(200) == []
    assert (
        built("moco", momentum=0.999)
        .notes(1000)[0]
        .startswith("warning: objective.moco: momentum = 0.999: 37%")
    )
    assert built("dino").notes(200) == [
        "objective.dino: momentum = 0.9542 at the start, chosen from train.steps = 200"
    ]
