"""Local views predict and are never predicted: targets without a gradient are of global views."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from medcl3d.core.embeddings import Embedded
from medcl3d.objectives.partners import relate_to_all, uniform
from medcl3d.objectives.relating import EmbeddingQueue, Relating
from medcl3d.pairs.multi_crop import MultiCrop
from tests.objectives.small import NAMES, SIDE, Step, batch_of, keys_of

SAMPLES, NUM_LOCAL = 4, 4
TARGETS = {"byol": "target", "moco": "target", "simsiam": "target", "dino": "target", "swav": "large"}
TAUGHT = ("byol", "moco", "dino")
RELATING = Relating(MultiCrop().relate)


def embed(name: str, **fields: int) -> tuple[Step, Embedded]:
    model = Step(name, **fields)
    return model, model.objective.embed(model.network, batch_of(range(SAMPLES), NUM_LOCAL))


def test_all_objectives_with_targets_are_tested_here() -> None:
    fixed = {name for name in NAMES if any(not rows.z.requires_grad for rows in embed(name)[1].values())}
    assert fixed == set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_local_targets_have_no_probability(name: str) -> None:
    """With P of multi_crop, all targets are global, and every view has one."""
    _, embedded = embed(name)
    online, target = embedded["online"], embedded[TARGETS[name]]
    assert len(online.keys) == SAMPLES * (2 + NUM_LOCAL) and len(target.keys) == len(target.z) == SAMPLES * 2
    relation = RELATING(online.keys, target.keys, torch.zeros(len(online.keys), len(target.keys)))
    share = relation.positive / relation.positive.sum(1, keepdim=True)
    assert float(share[:, target.keys.view >= 2].sum()) == 0
    assert torch.equal(share.sum(1), torch.ones(len(share)))
    assert torch.equal(target.keys.view, torch.tensor([0, 1] * SAMPLES))


@pytest.mark.parametrize("name", TAUGHT)
def test_a_teacher_gets_no_local_views(name: str) -> None:
    model = Step(name)
    read: list[tuple[int, ...]] = []
    model.objective.teacher.copies[0].register_forward_hook(
        lambda module, given, result: read.append(tuple(given[0].shape))
    )
    model.objective.embed(model.network, batch_of(range(SAMPLES), NUM_LOCAL))
    assert read == [(SAMPLES * 2, 1, SIDE, SIDE, SIDE)]


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a @ b / (a.norm() * b.norm())).detach())


@pytest.mark.parametrize(
    ("name", "loss_of"), [("byol", lambda cos: 2 - 2 * cos), ("simsiam", lambda cos: -cos)]
)
def test_the_loss_of_drawn_partners_equals_loops(name: str, loss_of: Callable[[float], float]) -> None:
    """A global view predicts the other global one; a local view one of both, the second if its draw is 0.5 or
    more.
    """
    model, embedded = embed(name)
    online, target = embedded["online"], embedded["target"]
    draws = uniform(online.keys)
    total = 0.0
    for i in range(len(online.z)):
        sample, view = int(online.keys.sample[i]), int(online.keys.view[i])
        partner = 1 - view if view < 2 else int(draws[i] >= 0.5)
        total += loss_of(cosine(online.z[i], target.z[sample * 2 + partner]))
    found = float(model.objective.loss(embedded, RELATING).value)
    assert found == pytest.approx(total / len(online.z), rel=1e-9)


@pytest.mark.parametrize("queue_size", [0, 20])
def test_the_loss_of_moco_equals_loops_and_its_queue_holds_only_global_views(queue_size: int) -> None:
    """v3 (no queue): the other samples' global views repel. v2: only embeddings of earlier batches."""
    model = Step("moco", queue_size=queue_size)
    objective = model.objective
    layout = keys_of(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    support = EmbeddingQueue(queue_size, objective.dim, layout).double() if queue_size else None
    relating = Relating(MultiCrop().relate, None, support)
    kept: list[Tensor] = []
    for step in range(2):
        samples = range(step * SAMPLES, (step + 1) * SAMPLES)
        embedded = objective.embed(model.network, batch_of(samples, NUM_LOCAL))
        online, target = embedded["online"], embedded["target"]
        total = 0.0
        for i in range(len(online.z)):
            sample, view = int(online.keys.sample[i]), int(online.keys.view[i])
            e = [math.exp(float(online.z[i] @ t) / objective.temperature) for t in target.z]
            own = [
                j
                for j in range(len(e))
                if int(target.keys.sample[j]) == sample and int(target.keys.view[j]) != view
            ]
            others = [e[j] for j in range(len(e)) if int(target.keys.sample[j]) != sample]
            if queue_size:
                others = [math.exp(float(online.z[i] @ t) / objective.temperature) for t in kept]
            total += sum(-math.log(e[j] / (sum(e[k] for k in own) + sum(others))) for j in own) / len(own)
        loss = objective.loss(embedded, relating)
        assert float(loss.value) == pytest.approx(total / len(online.z), rel=1e-6)
        kept += list(target.z)
        local = (online.keys.view >= 2).sum()
        assert float(loss.metrics["positives_per_anchor"]) == pytest.approx(
            float(2 * local + 2 * SAMPLES) / len(online.z)
        )
        assert float(loss.metrics["fraction_ignored"]) >= 0, "a local view has no own column to exclude"
    if support is not None:
        z, keys = support.content()
        assert int(support.count) == 2 * 2 * SAMPLES and bool((keys.view < 2).all())
        torch.testing.assert_close(z, torch.stack(kept), atol=1e-6, rtol=1e-6)


def test_without_a_queue_only_the_view_itself_is_ignored() -> None:
    model, embedded = embed("moco", queue_size=0)
    assert float(model.objective.loss(embedded, RELATING).metrics["fraction_ignored"]) == 0


@pytest.mark.parametrize("name", ["barlow_twins", "vicreg"])
def test_objectives_without_targets_draw_any_view_that_attracts(name: str) -> None:
    """Both sides have a gradient; the first view is compared with the other global view or a local one."""
    _, embedded = embed(name)
    rows = embedded["online"]
    first = rows[rows.keys.view == 0]
    related = relate_to_all(first, rows, RELATING)
    share = related.relation.positive / related.relation.positive.sum(1, keepdim=True)
    order = rows.keys.view[related.order]
    assert rows.z.requires_grad and float(share[:, order >= 2].sum(1).min()) == pytest.approx(
        NUM_LOCAL / (NUM_LOCAL + 1)
    )
