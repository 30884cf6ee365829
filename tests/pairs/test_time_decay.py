"""Two visits of one patient with a budget: formula, controls, combinators, and what it trains."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from medcl3d.config.field_types import Choice
from medcl3d.core.collection import Collection
from medcl3d.core.embeddings import Embeddings
from medcl3d.core.errors import ConfigError
from medcl3d.core.keys import Keys
from medcl3d.losses.contrastive_loss import ContrastiveLoss
from medcl3d.objectives.contrast import contrast
from medcl3d.objectives.dense import Dense, crop_keys
from medcl3d.objectives.relating import Relating
from medcl3d.pairs import traits_of
from medcl3d.pairs.combinators import Product, Sum
from medcl3d.pairs.exclude import Exclude
from medcl3d.pairs.hard_negatives import HardNegatives
from medcl3d.pairs.placebo import placebo
from medcl3d.pairs.time_decay import TimeDecay
from tests.pairs.collections import make_collection, visits
from tests.pairs.test_strategies import batch_of_points, batch_of_views
from tests.reference.contrastive import budget_loss_loops, contrastive_loss_loops

cohorts = st.builds(make_collection, st.integers(0, 10_000), st.integers(2, 5).map(lambda n: 2 * n)).map(
    visits
)


def views(strategy: TimeDecay, seed: int, num_scans: int = 8) -> Keys:
    return batch_of_views(strategy, visits(make_collection(seed % 20, num_scans)), seed)


@given(collection=cohorts, seed=st.integers(0, 1000), base=st.floats(0, 1), rise=st.floats(0, 2))
def test_the_budget_grows_with_time_between_the_visits_of_a_sample(
    collection: Collection, seed: int, base: float, rise: float
) -> None:
    strategy = TimeDecay(budget=base, per_year=rise)
    keys = batch_of_views(strategy, collection, seed)
    relation = strategy.relate(keys, keys, None)
    assert relation.budget is not None
    for i in range(len(keys)):
        for j in range(len(keys)):
            p, m, b = (float(part[i, j]) for part in (relation.positive, relation.negative, relation.budget))
            if keys.patient[i] != keys.patient[j]:
                assert (p, m) == (0, 1) and np.isnan(b)
            elif keys.sample[i] != keys.sample[j] or i == j:
                assert (p, m) == (0, 0) and np.isnan(b), "other pairs of the patient are ignored"
            elif keys.scan[i] == keys.scan[j]:
                assert (p, m) == (1, 0) and np.isnan(b)
            else:
                years = abs(float(keys.session_days[i] - keys.session_days[j])) / 365.25
                assert (p, m) == (0, 0) and b == pytest.approx(base + rise * years, rel=1e-5)


@given(collection=cohorts, seed=st.integers(0, 1000))
def test_a_sample_is_one_crop_of_each_of_two_visits_twice(collection: Collection, seed: int) -> None:
    strategy = TimeDecay()
    anchor = int(strategy.anchors(collection).ids[0])
    one, same, two, again = strategy.sample(collection, anchor, np.random.default_rng(seed))
    assert one == same and two == again and one.scan == anchor and two.scan // 2 == anchor // 2 != two.scan


@given(seed=st.integers(0, 1000), constant=st.floats(10, 1000))
def test_controls_have_the_same_draws_and_no_budget(seed: int, constant: float) -> None:
    decay = TimeDecay(across="decay", time_constant_days=constant)
    keys = views(decay, seed)
    assert torch.equal(keys.center_mm, views(TimeDecay(), seed).center_mm)
    found, ignored = decay.relate(keys, keys, None), TimeDecay(across="ignore").relate(keys, keys, None)
    known = TimeDecay().relate(keys, keys, None)
    assert known.budget is not None and found.budget is None and ignored.budget is None
    assert torch.equal(ignored.positive, known.positive) and torch.equal(ignored.negative, known.negative)
    pairs = ~known.budget.isnan()
    days = (keys.session_days[:, None] - keys.session_days).abs()[pairs]
    torch.testing.assert_close(
        found.positive[pairs], torch.exp(-days / constant).float(), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(found.negative[pairs], 1 - found.positive[pairs])
    assert torch.equal(found.positive[~pairs], known.positive[~pairs])
    assert torch.equal(found.negative[~pairs], known.negative[~pairs])


def test_visits_without_days_have_no_budget() -> None:
    keys = views(TimeDecay(), 3)
    unknown = dataclasses.replace(keys, session_days=torch.full_like(keys.session_days, torch.nan))
    relation = TimeDecay().relate(unknown, unknown, None)
    assert relation.budget is not None and relation.budget.isnan().all()


@given(seed=st.integers(0, 1000))
def test_a_permuted_batch_and_a_tile_have_the_budgets_of_the_whole(seed: int) -> None:
    strategy, keys = TimeDecay(), views(TimeDecay(), seed)
    whole = strategy.relate(keys, keys, None).budget
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(keys)))
    mixed = strategy.relate(keys[order], keys[order], None).budget
    tile = strategy.relate(keys[2:5], keys[1:9], None).budget
    assert whole is not None
    torch.testing.assert_close(mixed, whole[order][:, order], equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(tile, whole[2:5, 1:9], equal_nan=True, rtol=0, atol=0)


@given(seed=st.integers(0, 1000), weight=st.floats(0.1, 5))
def test_the_loss_of_a_batch_equals_loops(seed: int, weight: float) -> None:
    strategy = TimeDecay(budget=0.2, per_year=0.3, weight=weight)
    keys = views(strategy, seed)
    z = torch.randn(len(keys), 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    relating = Relating(
        strategy.relate, strategy, constant_across=("sample", "patient"), budget_weight=weight
    )
    found = contrast(Embeddings(F.normalize(z, dim=1), keys), relating, 0.2, "all", False)
    relation = strategy.relate(keys, keys, None)
    assert relation.budget is not None
    excess = budget_loss_loops(z.tolist(), relation.budget.tolist())
    attract, repel = relation.positive.tolist(), relation.negative.tolist()
    expected = contrastive_loss_loops(z.tolist(), attract, repel, 0.2, "all") + weight * excess
    assert float(found.value) == pytest.approx(expected, rel=1e-6)
    assert float(found.metrics["loss"]) == pytest.approx(expected, rel=1e-6)
    assert float(found.metrics["budget_excess"]) == pytest.approx(excess, rel=1e-6)
    assert float(found.metrics["pairs_with_budget"]) == float((~relation.budget.isnan()).sum())


def test_a_placebo_permutes_days_and_the_budgets_with_them() -> None:
    collection = visits(make_collection(0, 20))
    moved, strategy = placebo(collection, TimeDecay(), 0), TimeDecay()
    true, false = (batch_of_views(strategy, one, 1, count=8) for one in (collection, moved))
    assert torch.equal(true.center_mm, false.center_mm), "the same crops are drawn"
    budgets = [strategy.relate(keys, keys, None).budget for keys in (true, false)]
    assert budgets[0] is not None and budgets[1] is not None
    assert torch.equal(budgets[0].isnan(), budgets[1].isnan())
    assert not torch.equal(budgets[0].nan_to_num(), budgets[1].nan_to_num())


def test_without_pairs_of_visits_there_is_no_placebo() -> None:
    with pytest.raises(ConfigError, match="no signal column to permute"):
        placebo(visits(make_collection(0, 4)), TimeDecay(across="ignore"), 0)


@pytest.mark.parametrize("combinator", [Sum, Product])
def test_sums_and_products_refuse_budgets(combinator: type[Sum] | type[Product]) -> None:
    parts = (Choice("augmented_views"), Choice("exclude", {"inner": Choice("time_decay")}))
    with pytest.raises(ConfigError, match=r"exclude sets budgets of pairs, which a (sum|product) cannot"):
        _ = combinator(parts=parts).strategies
    allowed = (Choice("augmented_views"), Choice("time_decay", {"across": "decay"}))
    assert len(combinator(parts=allowed).strategies) == 2


@pytest.mark.parametrize("outer", [Exclude, HardNegatives])
def test_wrappers_keep_budgets(outer: type[Exclude] | type[HardNegatives]) -> None:
    strategy = outer(inner=Choice("time_decay"))
    keys = views(TimeDecay(), 2)
    found, inner = strategy.relate(keys, keys, None), TimeDecay().relate(keys, keys, None)
    torch.testing.assert_close(found.budget, inner.budget, equal_nan=True)
    assert traits_of(strategy.strategies[0]).budget_weight == 1


@given(seed=st.integers(0, 1000))
def test_corresponding_points_have_the_budget_of_their_crops(seed: int) -> None:
    keys = batch_of_points(TimeDecay(), visits(make_collection(seed % 20, 8)), seed)
    gate = Dense.gate(cast(Dense, SimpleNamespace(tolerance_mm=0.0, ignore_mm=4.0)), TimeDecay().relate)
    found, known = gate(keys, keys, None), TimeDecay().relate(crop_keys(keys), crop_keys(keys), None)
    assert found.budget is not None and known.budget is not None
    same_point = (keys.sample[:, None] == keys.sample) & (keys.point[:, None] == keys.point)
    torch.testing.assert_close(found.budget[same_point], known.budget[same_point], equal_nan=True)
    with_budget = ~found.budget.isnan()
    assert with_budget.any() and not with_budget[~same_point].any()
    assert (found.positive[with_budget] == 0).all() and (found.negative[with_budget] == 0).all()


def test_descent_brings_visits_to_their_budget_and_no_further() -> None:
    keys = views(TimeDecay(), 5)[:4]  # one sample
    apart = {}
    for across in ("budget", "ignore"):
        strategy = TimeDecay(budget=0.3, per_year=0.0, across=across)
        relation = strategy.relate(keys, keys, None)
        z = torch.eye(4, dtype=torch.float64).add(0.1).requires_grad_()
        optimizer, loss = torch.optim.SGD([z], lr=0.05), ContrastiveLoss(budget_weight=5.0)
        for _ in range(400):
            optimizer.zero_grad()
            loss(z, relation.positive, relation.negative, relation.budget).backward()
            optimizer.step()
        unit = F.normalize(z.detach(), dim=1)
        apart[across] = (1 - unit @ unit.T)[:2, 2:]
    assert ((apart["budget"] > 0.25) & (apart["budget"] < 0.31)).all()
    assert (apart["ignore"] > 0.5).all(), "nothing attracts them"
