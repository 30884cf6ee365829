"""Strategies that need features: neighbours in an embedding queue, hard negatives."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from medcl3d.config.field_types import Choice
from medcl3d.config.loading import parse
from medcl3d.core.embeddings import Embeddings
from medcl3d.core.errors import ConfigError
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation
from medcl3d.losses.contrastive import Tile, contrastive_sum
from medcl3d.objectives.contrast import contrast
from medcl3d.objectives.relating import EmbeddingQueue, Relating
from medcl3d.pairs import PAIRS, link
from medcl3d.pairs.augmented_views import AugmentedViews
from medcl3d.pairs.combinators import Sum
from medcl3d.pairs.hard_negatives import HardNegatives
from medcl3d.pairs.nearest_neighbours import NearestNeighbours
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.parts import assemble
from tests.pairs.collections import make_collection
from tests.pairs.test_strategies import batch_of_views

VIEWS = Choice("augmented_views")


def views(count: int, seed: int = 0, first_sample: int = 0) -> Keys:
    keys = batch_of_views(AugmentedViews(), make_collection(0, 6), seed, count)
    return dataclasses.replace(keys, sample=keys.sample + first_sample)


def unit(rows: int, seed: int = 0, dim: int = 5) -> Tensor:
    return F.normalize(
        torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )


def with_support(keys: Keys, earlier: Keys) -> Keys:
    positions = torch.cat([torch.full((len(keys),), -1), torch.arange(len(earlier))])
    return dataclasses.replace(Keys.cat([keys, earlier]), linked={"support": positions})


@pytest.mark.parametrize("k", [1, 3])
def test_the_neighbours_of_a_views_partner_are_its_positives(k: int) -> None:
    """NNCLR (eq. 3) compares a view with the neighbour of the other view."""
    keys, earlier = views(4), views(5, seed=1, first_sample=100)
    z, support = unit(8), unit(10, seed=1)
    strategy = NearestNeighbours(k=k, inner=VIEWS)
    cols = with_support(keys, earlier)
    similarity = z @ torch.cat([z, support]).T
    rows, cols = strategy.link(keys, cols, similarity)
    relation = strategy.relate(rows, cols, similarity)
    partner = [1, 0, 3, 2, 5, 4, 7, 6]  # two views per sample, in order
    for i in range(8):
        nearest = (z[partner[i]] @ support.T).argsort(descending=True)[:k]
        assert set(relation.positive[i, 8:].nonzero().flatten().tolist()) == set(nearest.tolist())
    inner = AugmentedViews().relate(keys, keys, None)
    assert torch.equal(relation.positive[:, :8], inner.positive) and torch.equal(
        relation.negative[:, :8], inner.negative
    )
    assert (relation.negative[:, 8:] == 0).all(), "the rest of the queue is ignored"


def test_an_empty_queue_leaves_the_inner_relation() -> None:
    keys = views(3)
    cols = dataclasses.replace(keys, linked={"support": torch.full((6,), -1)})
    strategy, similarity = NearestNeighbours(k=2, inner=VIEWS), unit(6) @ unit(6).T
    relation = strategy.relate(*strategy.link(keys, cols, similarity), similarity)
    assert torch.equal(relation.positive, AugmentedViews().relate(keys, keys, None).positive)


def test_the_queue_keeps_the_last_embeddings_and_their_keys() -> None:
    support = EmbeddingQueue(5, 3, views(1))
    for step in range(4):
        support.keep(torch.full((2, 3), float(step)), views(1, first_sample=step).matrix())
    z, keys = support.content()
    assert sorted(z[:, 0].tolist()) == [1.0, 2.0, 2.0, 3.0, 3.0] and sorted(keys.sample.tolist()) == [
        1,
        2,
        2,
        3,
        3,
    ]
    assert [int(s) for s in z[:, 0]] == keys.sample.tolist(), "an embedding and its keys stay together"
    again = EmbeddingQueue(5, 3, views(1))
    again.load_state_dict(support.state_dict())
    torch.testing.assert_close(
        (again.content()[0], again.content()[1].matrix()), (z, keys.matrix()), rtol=0, atol=0, equal_nan=True
    )


def test_a_batch_is_related_to_the_queue_before_it_is_added() -> None:
    strategy = NearestNeighbours(k=1, queue_size=6, inner=VIEWS)
    relating = Relating(strategy.relate, strategy, EmbeddingQueue(6, 5, views(1)))
    columns, keys = relating.columns(unit(4).float(), views(2))
    assert len(columns) == 4 and (keys.linked["support"] == -1).all()
    columns, keys = relating.columns(unit(4, seed=2).float(), views(2, first_sample=10))
    assert len(columns) == 8 and keys.linked["support"].tolist() == [-1] * 4 + [0, 1, 2, 3]
    assert torch.equal(columns[4:], unit(4).float()) and keys.sample[4:].tolist() == [0, 0, 1, 1]


def robinson(z: Tensor, beta: float, tau: float, temperature: float) -> Tensor:
    """The hard, debiased loss of each view by loops: Robinson et al. 2021, eq. 4 with the estimator of Chuang
    et al., eq. 7 and 8.

    Rows 2i and 2i + 1 are two views of one sample.
    """
    losses = []
    for i in range(len(z)):
        partner = i + 1 if i % 2 == 0 else i - 1
        positive = torch.exp(z[i] @ z[partner] / temperature)
        negatives = [torch.exp(z[i] @ z[j] / temperature) for j in range(len(z)) if j not in (i, partner)]
        number = len(negatives)
        importance = [value**beta for value in negatives]
        mean = sum(importance) / number
        hard = sum(w / mean * value for w, value in zip(importance, negatives, strict=True))
        estimate = (hard - tau * number * positive) / (1 - tau)
        estimate = torch.clamp(torch.as_tensor(estimate), min=number * np.exp(-1 / temperature))
        losses.append(-torch.log(positive / (positive + estimate)))
    return torch.stack(losses)


@pytest.mark.parametrize(("beta", "tau"), [(0.0, 0.0), (1.0, 0.0), (0.5, 0.1), (2.0, 0.05), (1.0, 0.6)])
@pytest.mark.parametrize("temperature", [0.5, 0.1])
def test_the_loss_is_that_of_robinson_et_al(beta: float, tau: float, temperature: float) -> None:
    z, keys = unit(12), views(6)
    strategy = HardNegatives(inner=VIEWS, concentration=beta, prior=tau, temperature=temperature)
    similarity = z @ z.T
    relation = strategy.relate(*strategy.link(keys, keys, similarity), similarity)
    found = contrastive_sum(z, z, lambda block, _: Tile(relation), temperature)
    assert float(found.loss) == pytest.approx(float(robinson(z, beta, tau, temperature).sum()), rel=1e-5)


@pytest.mark.parametrize(("beta", "tau"), [(0.0, 0.0), (1.0, 0.0), (0.5, 0.1), (2.0, 0.05), (1.0, 0.6)])
@pytest.mark.parametrize("temperature", [0.5, 0.1])
def test_the_gradient_goes_through_the_weights_as_in_the_authors_code(
    beta: float, tau: float, temperature: float
) -> None:
    """Value and gradient of the official formula by loops and autograd; without it, the weights are
    constants.
    """
    keys = views(6)

    def of_blocks(detach: bool) -> tuple[Tensor, Tensor]:
        z = unit(12).requires_grad_()
        fields: dict[str, Any] = {
            "concentration": beta,
            "prior": tau,
            "temperature": temperature,
            "detach_weights": detach,
        }
        strategy = HardNegatives(inner=VIEWS, **fields)
        relate_block = Relating(strategy.relate, strategy).tiles(keys, keys, z, z)
        loss = contrastive_sum(z, z, relate_block, temperature, rows_at_once=5).loss
        loss.backward()
        assert z.grad is not None
        return loss.detach(), z.grad

    z = unit(12).requires_grad_()
    expected = robinson(z, beta, tau, temperature).sum()
    expected.backward()
    assert z.grad is not None
    (value, through), (same, constant) = of_blocks(False), of_blocks(True)
    torch.testing.assert_close((value, through), (expected.detach(), z.grad), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(value, same)
    if beta == 0 == tau:
        torch.testing.assert_close(through, constant, rtol=1e-5, atol=1e-5)
    else:
        assert (through - constant).norm() > 0.01 * constant.norm()


@pytest.mark.parametrize(("kind", "decoupled"), [("all", False), ("own", False), ("all", True)])
@pytest.mark.parametrize(
    "strategy",
    [
        HardNegatives(
            inner=Choice("metadata_kernel", {"columns": {"age": 10.0}}), prior=0.05, detach_weights=False
        ),
        HardNegatives(
            inner=Choice("nearest_neighbours", {"k": 2, "queue_size": 6, "inner": VIEWS}),
            detach_weights=False,
        ),
        Sum(
            parts=(
                Choice("hard_negatives", {"inner": VIEWS, "detach_weights": False}),
                Choice("hard_negatives", {"inner": VIEWS}),
            )
        ),
    ],
    ids=["soft positives", "queue", "sum with constant weights"],
)
def test_the_gradient_through_the_weights_is_that_of_autograd(
    strategy: Any, kind: Any, decoupled: bool
) -> None:
    """The whole relation at once under autograd, for every denominator."""
    keys, earlier = views(4), views(3, 1, first_sample=50)
    cols = with_support(keys, earlier)

    def leaf_tensors() -> tuple[Tensor, Tensor]:
        return unit(8, seed=3).requires_grad_(), unit(14, seed=4).requires_grad_()

    z, columns = leaf_tensors()
    blocks = contrastive_sum(
        z, columns, Relating(strategy.relate, strategy).tiles(keys, cols, z, columns), 0.1,
        denominator=kind, decoupled=decoupled, rows_at_once=3,
    )  # fmt: skip
    blocks.loss.backward()
    z_whole, columns_whole = leaf_tensors()
    similarity = z_whole @ columns_whole.T
    relation = strategy.relate(*link(strategy, keys, cols, similarity.detach()), similarity)
    p, m, e = relation.positive.double(), relation.negative.double(), torch.exp(similarity / 0.1)
    mass = p.sum(1)
    if kind == "own":
        d = (1 - m).clamp(min=0) * e + (m * e).sum(1, keepdim=True)
    else:
        d = ((m if decoupled else p + m) * e).sum(1, keepdim=True).expand_as(e)
    rows = mass.clamp(max=1) / mass * (p * (d.log() - similarity / 0.1)).sum(1)
    whole = rows[mass > 0].sum()
    whole.backward()
    torch.testing.assert_close(blocks.loss, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        (z.grad, columns.grad), (z_whole.grad, columns_whole.grad), rtol=1e-4, atol=1e-4
    )


def test_gradients_through_the_weights_are_never_nan() -> None:
    """Rows without a positive or a negative, weights at their lower bound, also at low temperature."""
    keys = views(6)
    for temperature in (0.1, 0.01, 0.001):
        for chosen in (keys, keys[:2], keys[::2]):
            z = unit(len(chosen)).requires_grad_()
            strategy = HardNegatives(
                inner=VIEWS, concentration=2.0, prior=0.7, temperature=temperature, detach_weights=False
            )
            loss = contrastive_sum(
                z, z, Relating(strategy.relate, strategy).tiles(chosen, chosen, z, z), temperature
            ).loss
            loss.backward()
            assert z.grad is not None and torch.isfinite(loss) and torch.isfinite(z.grad).all()


def test_harder_negatives_repel_more_and_are_finite_at_low_temperature() -> None:
    z, keys = unit(12), views(6)
    similarity = z @ z.T
    for temperature in (0.1, 0.01):
        strategy = HardNegatives(inner=VIEWS, concentration=1.0, prior=0.1, temperature=temperature)
        relation = strategy.relate(*strategy.link(keys, keys, similarity), similarity)
        assert torch.isfinite(relation.negative).all() and relation.negative.max() > 1
        use = AugmentedViews().relate(keys, keys, None).negative[0] > 0
        order = similarity[0][use].argsort()
        assert (torch.diff(relation.negative[0][use][order]) >= 0).all()


LINKING: list[Any] = [
    NearestNeighbours(k=2, inner=VIEWS),
    HardNegatives(inner=VIEWS, prior=0.1),
    HardNegatives(inner=Choice("nearest_neighbours", {"k": 2, "queue_size": 6, "inner": VIEWS})),
    Sum(
        parts=(
            Choice("hard_negatives", {"inner": VIEWS, "concentration": 2.0}),
            Choice("hard_negatives", {"inner": VIEWS}),
        )
    ),
    # A product refuses both strategies of crops that link.
    NearestNeighbours(k=2, inner=Choice("product", {"parts": (VIEWS, VIEWS)})),
]


@pytest.mark.parametrize("strategy", LINKING, ids=str)
@given(seed=st.integers(0, 1000))
def test_linked_relations_are_equal_for_tiles_and_permutations(strategy: Any, seed: int) -> None:
    keys, earlier = views(4, seed), views(3, seed + 1, first_sample=50)
    z = unit(14, seed)
    cols, similarity = with_support(keys, earlier), z[:8] @ z.T
    linked = link(strategy, keys, cols, similarity)
    whole = strategy.relate(*linked, similarity)
    tile = strategy.relate(linked[0][2:5], linked[1][1:12], similarity[2:5, 1:12])
    torch.testing.assert_close(tile.positive, whole.positive[2:5, 1:12])
    torch.testing.assert_close(tile.negative, whole.negative[2:5, 1:12])
    rng = np.random.default_rng(seed)
    rows, columns = torch.from_numpy(rng.permutation(8)), torch.from_numpy(rng.permutation(14))
    mixed_similarity = similarity[rows][:, columns]
    mixed = strategy.relate(*link(strategy, keys[rows], cols[columns], mixed_similarity), mixed_similarity)
    torch.testing.assert_close(mixed.positive, whole.positive[rows][:, columns])
    torch.testing.assert_close(mixed.negative, whole.negative[rows][:, columns], rtol=1e-4, atol=1e-6)


def test_parts_of_a_sum_link_columns_under_their_numbers() -> None:
    sharp, flat = (HardNegatives(inner=VIEWS, concentration=beta) for beta in (2.0, 0.0))
    strategy = Sum(
        parts=tuple(Choice("hard_negatives", {"inner": VIEWS, "concentration": beta}) for beta in (2.0, 0.0))
    )
    keys, similarity = views(6), unit(12) @ unit(12).T
    found = strategy.relate(*strategy.link(keys, keys, similarity), similarity)
    separate = [
        part.relate(*part.link(keys, keys, similarity), similarity).negative for part in (sharp, flat)
    ]
    torch.testing.assert_close(found.negative, (separate[0] + separate[1]) / 2)


def test_all_strategies_with_a_link_are_tested_here() -> None:
    linking = {name for name in PAIRS.names() if hasattr(PAIRS.get(name), "link")}
    elsewhere = {"cycle_voxels", "region_points"}  # of points: test_cycle_voxels.py, test_region_points.py
    assert linking == {"nearest_neighbours", "hard_negatives", "sum", "product", "exclude"} | elsewhere


def test_points_of_related_crops_refuse_a_gradient_through_the_weights(tiny_store: Path) -> None:
    config = {
        "data": {"root": str(tiny_store), "patch_size": [16, 16, 16]},
        "pairs": {"hard_negatives": {"detach_weights": False}},
        "views": "mri",
        "encoder": {"unet3d": {"channels": [4, 8], "strides": [1, 2]}},
        "objective": "dense",
        "train": {"steps": 1, "samples_per_step": 2},
        "out_dir": "unused",
    }
    with pytest.raises(ConfigError, match="depends on features of crops, and the objective compares points"):
        assemble(parse(config, PretrainConfig, "test"))
    config["pairs"] = {"hard_negatives": {"detach_weights": False, "inner": "voxel_correspondence"}}
    parts = assemble(parse(config, PretrainConfig, "test"))
    parts.learner(parts.dataset()[0]).value.backward()
    gradients = [p.grad for p in parts.learner.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("detach_weights", [True, False])
def test_weights_are_finite_and_exact_if_a_positive_is_near_at_low_temperature(detach_weights: bool) -> None:
    """e^(s / T) of an identical positive is infinite from T = 0.0014 on."""
    keys = views(3)
    z = unit(6)
    z[1::2] = z[::2]
    strategy = HardNegatives(inner=VIEWS, temperature=0.001, detach_weights=detach_weights)
    similarity = (z @ z.T).requires_grad_(not detach_weights)
    found = strategy.relate(*link(strategy, keys, keys, similarity.detach()), similarity)
    negative = found.negative.detach().double()
    repelled = AugmentedViews().relate(keys, keys, None).negative > 0
    assert torch.isfinite(negative).all() and (negative[~repelled] == 0).all()
    s = similarity.detach() / 0.001
    for row in range(6):
        own = torch.softmax(s[row, repelled[row]], 0) * repelled[row].sum()
        torch.testing.assert_close(negative[row, repelled[row]], own, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("detach_weights", [True, False])
def test_weights_are_relative_to_the_items_that_the_objective_lets_repel(detach_weights: bool) -> None:
    """MoCo with a queue: negatives of the batch are dropped, and must not lower the weights of the others."""
    keys, earlier = views(3), views(4, seed=1, first_sample=100)
    z, queued = unit(6), unit(8, seed=1)
    strategy = HardNegatives(inner=VIEWS, concentration=2.0, prior=0.1, detach_weights=detach_weights)
    support = EmbeddingQueue(20, 5, views(1))
    support.keep(queued.float(), earlier.matrix())
    relating, seen = Relating(strategy.relate, strategy, support), []
    relate = relating.relate

    def record(rows: Keys, cols: Keys, similarity: Tensor | None) -> Relation:
        seen.append(relate(rows, cols, similarity))
        return seen[-1]

    relating.relate = record
    leaf = z.clone().requires_grad_()
    contrast(Embeddings(leaf, keys), relating, 0.1, "all", False, only_queue_repels=True)
    negative = torch.cat([one.negative.detach() for one in seen]).double()
    assert (negative[:, :6] == 0).all()
    s, queued = z @ queued.float().double().T / 0.1, queued.float().double()
    partner = torch.arange(6) ^ 1
    positive = (z * z[partner]).sum(1) / 0.1
    for row in range(6):
        importance = torch.exp(2 * s[row])
        hard = importance / importance.mean()
        total = (hard * s[row].exp()).sum()
        target = max((total - 0.1 * 8 * positive[row].exp()) / 0.9, 8 * torch.exp(torch.tensor(-10.0)))
        torch.testing.assert_close(negative[row, 6:], hard * target / total, rtol=1e-4, atol=1e-12)
