"""Who follows whom, and through what no gradient flows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medcl3d.objectives.teacher import Teacher, momentum_at
from tests.objectives.small import Step, batch_of

FOLLOWED = ("byol", "moco", "dino")
FIXED = {"byol": "target", "simsiam": "target", "moco": "target", "dino": "target", "swav": "large"}


def test_a_teacher_keeps_most_of_itself_and_takes_a_little() -> None:
    student = nn.BatchNorm1d(2)
    teacher = Teacher(student)
    with torch.no_grad():
        student.weight.fill_(5.0)
        student.running_mean.fill_(3.0)  # type: ignore[union-attr, operator]
    teacher.follow(0.9, student)
    copy = teacher.copies[0]
    assert torch.allclose(copy.weight, torch.full((2,), 0.9 * 1 + 0.1 * 5)), "an average of weights"
    assert torch.equal(copy.running_mean, student.running_mean), "buffers as they are"
    assert not any(p.requires_grad for p in teacher.parameters()) and student.weight.requires_grad


def test_it_slows_down_to_a_halt() -> None:
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
    moved = [float((after - b).mean()) for after, b in zip(objective.teacher.parameters(), before, strict=True)]
    share = 1 - objective.momentum
    assert 0 < share < 0.5
    assert [round(m, 6) for m in moved if m] == [round(share, 6)] * (len(moved) - (name == "dino")), "but for dino's words, which stayed"


@pytest.mark.parametrize(("name", "rows"), FIXED.items())
def test_no_gradient_flows_into_what_is_predicted(name: str, rows: str) -> None:
    model = Step(name)
    embedded = model.objective.embed(model.network, batch_of(range(3)))
    assert embedded["online"].z.requires_grad and not embedded[rows].z.requires_grad
