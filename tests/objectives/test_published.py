"""Objectives on two views of each sample are the published losses: value and gradient in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medcl3d.core.embeddings import Embeddings
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation, related
from medcl3d.losses.clusters import scores_of
from medcl3d.objectives.partners import draw_partners, in_order, uniform
from medcl3d.objectives.relating import EmbeddingQueue, Relating
from tests.objectives.small import Step, keys_of, rows_of
from tests.reference.lightly_losses import lightly_loss

SAMPLES, DIM = 7, 6


def same_sample(rows: Keys, cols: Keys, similarity: Tensor | None) -> Relation:
    return related(rows, cols, rows.sample[:, None] == cols.sample)


PAIRS = Relating(same_sample)


def two_views(seed: int, dim: int = DIM) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    first, second = (
        torch.randn(SAMPLES, dim, dtype=torch.float64, generator=rng).requires_grad_() for _ in range(2)
    )
    return first, second


def both(first: Tensor, second: Tensor) -> Embeddings:
    """Adjacent views of a sample, as in batches."""
    z = torch.stack([first, second], 1).flatten(0, 1)
    return Embeddings(z, keys_of(torch.arange(SAMPLES).repeat_interleave(2), torch.arange(2).repeat(SAMPLES)))


def equal(ours: Tensor, theirs: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)
    gradients = torch.autograd.grad(ours, inputs, retain_graph=True), torch.autograd.grad(theirs, inputs)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
        assert a.abs().max() > 0


def test_simsiam() -> None:
    p0, p1 = two_views(0)
    z0, z1 = two_views(1)
    ours = (
        Step("simsiam")
        .objective.loss({"online": both(p0, p1), "target": both(z0.detach(), z1.detach())}, PAIRS)
        .value
    )
    cosine = lightly_loss("negative_cosine_similarity", "NegativeCosineSimilarity")()
    equal(ours, (cosine(p0, z1.detach()) + cosine(p1, z0.detach())) / 2, p0, p1)


def test_byol_is_two_plus_twice_simsiam() -> None:
    p0, p1 = two_views(0)
    z0, z1 = two_views(1)
    ours = (
        Step("byol")
        .objective.loss({"online": both(p0, p1), "target": both(z0.detach(), z1.detach())}, PAIRS)
        .value
    )
    cosine = lightly_loss("negative_cosine_similarity", "NegativeCosineSimilarity")()
    equal(ours, 2 + cosine(p0, z1.detach()) + cosine(p1, z0.detach()), p0, p1)


@pytest.mark.parametrize(
    ("name", "module", "published", "fields"),
    [
        ("barlow_twins", "barlow_twins_loss", "BarlowTwinsLoss", {"lambda_param": 0.0051}),
        ("vicreg", "vicreg_loss", "VICRegLoss", {}),
    ],
)
def test_barlow_twins_and_vicreg(name: str, module: str, published: str, fields: dict[str, float]) -> None:
    a, b = two_views(2)
    theirs = lightly_loss(module, published)(**fields)(a, b)
    equal(Step(name).objective.loss({"online": both(a, b)}, PAIRS).value, theirs, a, b)


def test_dino_and_its_centre() -> None:
    model = Step("dino", koleo=0.0, num_prototypes=8, out_dim=DIM, center_momentum=0.9)
    theirs = lightly_loss("dino_loss", "DINOLoss")(
        output_dim=8, center_momentum=0.9, teacher_temp=0.04, warmup_teacher_temp_epochs=0
    ).double()
    for step in range(2):
        a, b = two_views(step)
        ta, tb = (t.detach() for t in two_views(step + 10, 8))
        unit_a, unit_b = F.normalize(a, dim=1), F.normalize(b, dim=1)
        model.objective.before_step(9, 10)  # after the warm-up of the temperature
        ours = model.objective.loss({"online": both(unit_a, unit_b), "target": both(ta, tb)}, PAIRS).value
        words = model.objective.words.weight
        expected = theirs([ta, tb], [scores_of(unit_a, words), scores_of(unit_b, words)], teacher_temp=0.04)
        equal(ours, expected, a, b)
    torch.testing.assert_close(model.objective.center, theirs.center.flatten())


@pytest.mark.parametrize("queue", [0, 5])
def test_swav(queue: int) -> None:
    model = Step("swav", num_prototypes=4, out_dim=DIM, queue_size=queue)
    objective = model.objective
    theirs = lightly_loss("swav_loss", "SwaVLoss")(
        temperature=0.1, sinkhorn_iterations=3, sinkhorn_epsilon=0.05
    )
    kept: list[list[Tensor]] = [[], []]
    for step in range(3):
        a, b = two_views(step)
        units = [F.normalize(a, dim=1), F.normalize(b, dim=1)]
        rows = both(*units)
        ours = objective.loss({"online": rows, "large": Embeddings(rows.z.detach(), rows.keys)}, PAIRS).value
        scores = [scores_of(z, objective.prototypes.weight) for z in units]
        # Ours scales columns, then rows, like lightly's last step; lightly's queue precedes the batch.
        past = (
            [scores_of(torch.cat(k)[-queue:], objective.prototypes.weight) for k in kept]
            if queue and kept[0]
            else None
        )
        expected = theirs(scores, [], past).squeeze()
        equal(ours, expected, a, b)
        for k, z in zip(kept, units, strict=True):
            k.append(z.detach())


def test_moco_with_a_queue() -> None:
    """One query view, one key view and a queue of others': cross-entropy of the key among the queue, as in
    MoCo's algorithm 1.
    """
    model = Step("moco", out_dim=DIM, queue_size=9, predictor=False)
    support = EmbeddingQueue(
        9, DIM, keys_of(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    ).double()
    rng = torch.Generator().manual_seed(3)
    queue = F.normalize(torch.randn(9, DIM, dtype=torch.float64, generator=rng), dim=1)
    support.keep(queue, keys_of(torch.arange(100, 109), torch.zeros(9, dtype=torch.int64)).matrix())
    q, k = two_views(4)
    queries, keys = F.normalize(q, dim=1), F.normalize(k, dim=1).detach()
    ours = model.objective.loss(
        {"online": rows_of(queries, 0, SAMPLES), "target": rows_of(keys, 1, SAMPLES)},
        Relating(same_sample, None, support),
    )
    logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ queue.T], 1) / 0.1
    equal(ours.value, F.cross_entropy(logits, torch.zeros(SAMPLES, dtype=torch.int64)), q)
    assert torch.equal(support.content()[0][int(support.count) % 9 - 1], keys[-1]), (
        "the keys are in the queue"
    )


def test_partners_are_drawn_by_their_probability() -> None:
    samples = torch.arange(4000)
    rows = Embeddings(torch.randn(4000, 2), keys_of(samples, torch.zeros_like(samples)))
    targets = Embeddings(torch.eye(3), keys_of(-torch.arange(1, 4), torch.zeros(3, dtype=torch.int64)))
    share = torch.tensor([0.6, 0.1, 0.0])

    def soft(r: Keys, c: Keys, similarity: Tensor | None) -> Relation:
        order = (-c.sample - 1).long()
        return related(r, c, share[order].expand(len(r), 3))

    drawn = draw_partners(Embeddings(torch.randn(4000, 3), rows.keys), targets, Relating(soft))
    frequency = drawn.chosen.mean(0)
    assert torch.allclose(frequency, share / share.sum(), atol=0.03)
    assert torch.allclose(drawn.weight, torch.full((4000,), 0.7))


def test_draws_are_uniform_and_specific_to_an_item() -> None:
    keys = keys_of(torch.arange(20_000) // 2, torch.arange(20_000) % 2)
    u = uniform(keys)
    assert torch.equal(u[7:9], uniform(keys[7:9])) and len(u.unique()) == len(u)
    assert torch.histc(u, 10, 0, 1).sub(2000).abs().max() < 200
    assert abs(float(torch.corrcoef(torch.stack([u[::2], u[1::2]]))[0, 1])) < 0.03
    shuffled = keys[torch.randperm(len(u))]
    ordered = shuffled[in_order(shuffled)]
    assert torch.equal(ordered.sample, keys.sample) and torch.equal(ordered.view, keys.view)
