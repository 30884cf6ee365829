"""Composed kernels: formula by loops, missing values, the site in both directions, errors, what it trains."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medcl3d.core.collection import Collection
from medcl3d.core.embeddings import Embeddings
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.core.keys import Keys
from medcl3d.objectives.contrast import contrast
from medcl3d.objectives.relating import Relating
from medcl3d.pairs.batch_grouping import batch_grouping_of
from medcl3d.pairs.composed_kernels import ComposedKernels
from medcl3d.pairs.placebo import placebo
from tests.pairs.collections import make_collection
from tests.pairs.test_strategies import batch_of_views


def with_site(collection: Collection, seed: int = 0) -> Collection:
    """Two sites, and some scans without a site, age or group."""
    rng, count = np.random.default_rng(seed), len(collection)
    columns = {
        "site": rng.choice([0.0, 1.0, np.nan], count),
        "age": rng.choice([30.0, 34.0, 60.0, np.nan], count),
        "group": rng.choice([0.0, 1.0, np.nan], count),
    }
    for values in columns.values():  # no column is constant
        values[:2] = 0.0, 1.0
    columns["age"][:2] = 30.0, 60.0
    return collection.with_columns(columns)


cohorts = st.builds(
    lambda seed, count: with_site(make_collection(seed, count), seed),
    st.integers(0, 10_000),
    st.integers(4, 8),
)
KERNELS: dict[str, float | str] = {"age": 5.0, "group": "equal"}


def expected(strategy: ComposedKernels, keys: Keys, i: int, j: int) -> tuple[float, float]:
    """P and M of one pair, by scalars."""
    if keys.same_item(keys)[i, j]:
        return 0.0, 0.0
    same_site = bool(keys.metadata["site"][i] == keys.metadata["site"][j])
    d = math.dist(keys.body[i].tolist(), keys.body[j].tolist())
    parts = []
    age = float(keys.metadata["age"][i] - keys.metadata["age"][j])
    if not math.isnan(age):
        parts.append((strategy.mix, math.exp(-((age / 5.0) ** 2) / 2)))
    group = float(keys.metadata["group"][i] - keys.metadata["group"][j])
    if not math.isnan(group):
        parts.append((1 - strategy.mix, float(group == 0)))
    weight = sum(w for w, _ in parts)
    mixture = sum(w * k for w, k in parts) / weight if weight else 0.0
    kernel = math.exp(-(d**2) / (2 * strategy.sigma_mm**2)) * mixture
    positive = kernel * (strategy.rho if same_site else 1)
    if keys.sample[i] == keys.sample[j]:
        positive = 1.0
    return positive, (1 - positive) * (1 + strategy.beta * (1 - kernel) if same_site else 1)


@given(
    collection=cohorts,
    seed=st.integers(0, 1000),
    mix=st.sampled_from([0.0, 0.3, 1.0]),
    rho=st.floats(0, 1),
    beta=st.floats(0, 4),
)
def test_weights_follow_the_formula(
    collection: Collection, seed: int, mix: float, rho: float, beta: float
) -> None:
    strategy = ComposedKernels(columns=KERNELS, mix=mix, rho=rho, beta=beta, sigma_mm=60.0)
    keys = batch_of_views(strategy, collection, seed)
    relation = strategy.relate(keys, keys, None)
    for i, j in np.random.default_rng(seed).integers(0, len(keys), (60, 2)).tolist():
        found = float(relation.positive[i, j]), float(relation.negative[i, j])
        assert found == pytest.approx(expected(strategy, keys, i, j), rel=1e-5, abs=1e-6)


def at_one_place(ages: list[float], sites: list[float]) -> Keys:
    """Views of several patients at one position in the body."""
    collection = make_collection(0, 4)
    strategy = ComposedKernels(columns={"age": 10.0}, site="sex")
    keys = batch_of_views(strategy, collection, 0, count=4)[: len(ages)]
    number = torch.arange(len(ages))
    metadata = {"age": torch.tensor(ages).double(), "site": torch.tensor(sites).double()}
    return dataclasses.replace(
        keys, sample=number, scan=number, patient=number, body=torch.zeros_like(keys.body), metadata=metadata
    )


def test_a_site_attracts_less_and_repels_more_if_dissimilar() -> None:
    keys = at_one_place([40, 40, 40, 70], [0, 0, 1, 0])
    strategy = ComposedKernels(columns={"age": 2.0}, rho=0.25, beta=3.0)
    relation = strategy.relate(keys, keys, None)
    assert relation.positive[0].tolist() == pytest.approx([0, 0.25, 1, 0], abs=1e-6)
    assert relation.negative[0].tolist() == pytest.approx([0, 0.75, 0, 4], abs=1e-6)


def test_with_rho_1_and_beta_0_the_site_has_no_effect() -> None:
    strategy = ComposedKernels(columns={"age": 10.0}, rho=1.0, beta=0.0)
    one, two = (at_one_place([40, 45, 50, 70], sites) for sites in ([0.0, 0, 0, 0], [0.0, 1, 0, 1]))
    first, second = strategy.relate(one, one, None), strategy.relate(two, two, None)
    assert torch.equal(first.positive, second.positive) and torch.equal(first.negative, second.negative)


def test_the_disagreement_of_kernels_is_logged() -> None:
    keys = at_one_place([40, 40, 70, 70], [0, 1, 0, 1])
    keys = dataclasses.replace(keys, sample=torch.tensor([0, 0, 1, 1]))
    strategy = ComposedKernels(columns={"age": 1.0})
    z = torch.nn.functional.normalize(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    found = contrast(Embeddings(z, keys), Relating(strategy.relate, strategy), 0.1, "all", False)
    assert float(found.metrics["kernel_disagreement"]) == pytest.approx(8 / 12), (
        "all are at one place, 8 of 12 pairs differ in age"
    )


def test_batches_group_similar_patients() -> None:
    collection = make_collection(1, 8)
    grouping = batch_grouping_of(ComposedKernels(columns={"age": 10.0}, site="sex", group_size=2), collection)
    assert grouping is not None and grouping.samples_per_group == 2


def test_a_placebo_permutes_columns_and_site() -> None:
    collection, strategy = make_collection(0, 20), ComposedKernels(columns={"age": 5.0}, site="sex")
    moved = placebo(collection, strategy, 0)
    for name in ("age", "sex"):
        assert sorted(moved.columns[name]) == sorted(collection.columns[name])
        assert not np.array_equal(moved.columns[name], collection.columns[name])


def test_wrong_columns_and_sites_are_errors() -> None:
    collection = make_collection(0, 6)
    with pytest.raises(ConfigError, match=r"site = 'age' is one of the columns that attract"):
        ComposedKernels(columns={"age": 5.0}, site="age")
    with pytest.raises(DataError, match=r"composed_kernels: site = site: the manifest has no such column"):
        ComposedKernels(columns={"age": 5.0}).anchors(collection)
    same = collection.with_columns({"sex": np.zeros(6)})
    with pytest.raises(DataError, match=r"site = sex: the column distinguishes no two scans"):
        ComposedKernels(columns={"age": 5.0}, site="sex").anchors(same)
    with pytest.raises(DataError, match=r"composed_kernels: the manifest has no column 'weight'"):
        ComposedKernels(columns={"weight": 5.0}, site="sex").anchors(collection)


def test_descent_separates_sites_less_than_without_the_site_kernel() -> None:
    """The purpose: a pair of one scanner ends farther apart, one across scanners nearer."""
    from medcl3d.losses.contrastive_loss import ContrastiveLoss

    keys = at_one_place([40, 40, 40, 40], [0, 0, 1, 1])
    nearness = []
    for rho, beta in ((1.0, 0.0), (0.2, 2.0)):
        relation = ComposedKernels(columns={"age": 5.0}, rho=rho, beta=beta).relate(keys, keys, None)
        z = torch.eye(4, dtype=torch.float64).add(0.1)
        z[:, 3] += torch.tensor([0.5, 0.5, -0.5, -0.5])  # the site is visible at the start
        z.requires_grad_()
        optimizer = torch.optim.SGD([z], lr=0.1)
        for _ in range(100):
            optimizer.zero_grad()
            ContrastiveLoss(0.5)(z, relation.positive, relation.negative).backward()
            optimizer.step()
        cosine = torch.nn.functional.normalize(z.detach(), dim=1)
        cosine = cosine @ cosine.T
        nearness.append(float(cosine[:2, 2:].mean() - (cosine[0, 1] + cosine[2, 3]) / 2))
    assert nearness[1] > nearness[0] + 0.05
