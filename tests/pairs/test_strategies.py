"""Properties of all pair strategies, on random collections."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medcl3d.config.field_types import Choice
from medcl3d.core.collection import Collection
from medcl3d.core.errors import DataError
from medcl3d.core.keys import Keys
from medcl3d.pairs import PAIRS, PairStrategy, traits_of
from medcl3d.pairs.combinators import Product, Sum
from medcl3d.pairs.cross_modality import CrossModality
from medcl3d.pairs.exclude import Exclude
from medcl3d.pairs.hard_negatives import HardNegatives
from medcl3d.pairs.longitudinal import Longitudinal
from medcl3d.pairs.placebo import placebo
from medcl3d.pairs.same_patient import SamePatient
from medcl3d.pairs.tabular_neighbours import TabularNeighbours
from tests.pairs.collections import collections, gappy, one_session, visits

STRATEGIES = PAIRS.names()


# Fields with which a strategy has anchors in every random collection, and the parts of combinators.
PARTS = (Choice("overlapping_crops"), Choice("augmented_views"))
FIELDS: dict[str, dict[str, Any]] = {
    "adjacent_slices": {"max_gap_mm": 12.0, "ignore_mm": 30.0},
    "sum": {"parts": PARTS},
    "product": {"parts": PARTS},
    "exclude": {"inner": PARTS[0]},
    "multi_crop": {"local_size": (6, 5, 4), "num_local": 3},
    "metadata_kernel": {"columns": {"age": 10.0, "sex": "equal"}},
    "composed_kernels": {"columns": {"age": 10.0}, "site": "sex"},
    "region_points": {"regions": "supervoxels"},
    "tabular_neighbours": {"columns": {"age": 10.0, "sex": "equal"}, "k": 1},
    "class_labels": {"group_size": 1},
    "cross_modality": {"across_frames": "body"},
    "hard_negatives": {"inner": PARTS[0]},
    "nearest_neighbours": {"inner": PARTS[0], "queue_size": 8},
}
# Changes of the collection that they need.
COLLECTIONS: dict[str, Callable[[Collection], Collection]] = {
    "longitudinal": visits,
    "time_decay": visits,
    "cross_modality": one_session,
}
SOFT = (
    "longitudinal",
    "time_decay",
    "physical_overlap",
    "tabular_neighbours",
    "multi_crop",
)  # two views of a sample need not attract fully


def build(name: str) -> PairStrategy:
    strategy: PairStrategy = PAIRS.get(name)(**FIELDS.get(name, {}))
    return strategy


def fit_for(name: str, collection: Collection) -> Collection:
    return COLLECTIONS.get(name, lambda same: same)(collection)


def batch_of_views(strategy: PairStrategy, collection: Collection, seed: int, count: int = 6) -> Keys:
    """Keys of a small batch: several samples, some of the same scan."""
    rng = np.random.default_rng(seed)
    anchors = strategy.anchors(collection).ids
    views, sample, number = [], [], []
    for i in range(count):
        drawn = strategy.sample(collection, int(rng.choice(anchors)), rng)
        views += drawn
        sample += [i] * len(drawn)
        number += range(len(drawn))
    return collection.keys(views, np.array(sample), np.array(number))


def batch_of_points(strategy: PairStrategy, collection: Collection, seed: int) -> Keys:
    """Points of the views, on a coarse grid of mm so that different samples share positions."""
    keys = batch_of_views(strategy, collection, seed, count=4).map(
        lambda column: column.repeat_interleave(5, dim=0)
    )
    rng = np.random.default_rng(seed)
    position = torch.from_numpy(rng.integers(0, 4, (len(keys.sample.unique()), 5, 3)) * 3.0)
    point = torch.arange(5).repeat(len(keys) // 5)
    return dataclasses.replace(
        keys, point=point, position_mm=position[keys.sample, point], body=position[keys.sample, point]
    )


def batches(strategy: PairStrategy, collection: Collection, seed: int) -> list[Keys]:
    found = [batch_of_views(strategy, collection, seed)]
    if traits_of(strategy).relates_points:
        found.append(batch_of_points(strategy, collection, seed))
    return found


@pytest.mark.parametrize("name", STRATEGIES)
@given(collection=collections, seed=st.integers(0, 1000))
def test_weights_are_bounded_and_no_item_relates_to_itself(
    name: str, collection: Collection, seed: int
) -> None:
    strategy, collection = build(name), fit_for(name, collection)
    for keys in batches(strategy, collection, seed):
        relation = strategy.relate(keys, keys, None)
        assert ((relation.positive >= 0) & (relation.positive <= 1)).all()
        assert (relation.negative >= 0).all()
        assert (relation.positive.diagonal() == 0).all() and (relation.negative.diagonal() == 0).all()
        assert relation.positive.sum() > 0


@pytest.mark.parametrize("name", [name for name in STRATEGIES if traits_of(build(name)).constant_across])
@given(collection=collections, seed=st.integers(0, 1000))
def test_items_without_a_shared_key_repel_and_do_not_attract(
    name: str, collection: Collection, seed: int
) -> None:
    strategy, collection = build(name), fit_for(name, collection)
    for keys in batches(strategy, collection, seed):
        relation = strategy.relate(keys, keys, None)
        columns = [getattr(keys, column) for column in traits_of(strategy).constant_across or ()]
        apart = torch.stack([column[:, None] != column for column in columns]).all(0)
        assert (relation.positive[apart] == 0).all() and (relation.negative[apart] == 1).all()


@pytest.mark.parametrize("name", STRATEGIES)
@given(collection=collections, seed=st.integers(0, 1000))
def test_permuting_the_batch_permutes_the_relation(name: str, collection: Collection, seed: int) -> None:
    strategy, collection = build(name), fit_for(name, collection)
    for keys in batches(strategy, collection, seed):
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(keys)))
        whole, mixed = strategy.relate(keys, keys, None), strategy.relate(keys[order], keys[order], None)
        assert torch.equal(mixed.positive, whole.positive[order][:, order])
        assert torch.equal(mixed.negative, whole.negative[order][:, order])


@pytest.mark.parametrize("name", STRATEGIES)
@given(collection=collections, seed=st.integers(0, 1000))
def test_a_tile_equals_the_corner_of_the_whole_relation(name: str, collection: Collection, seed: int) -> None:
    strategy, collection = build(name), fit_for(name, collection)
    for keys in batches(strategy, collection, seed):
        whole, tile = strategy.relate(keys, keys, None), strategy.relate(keys[2:5], keys[1:9], None)
        assert torch.equal(tile.positive, whole.positive[2:5, 1:9])
        assert torch.equal(tile.negative, whole.negative[2:5, 1:9])


@pytest.mark.parametrize("name", STRATEGIES)
@given(collection=collections, seed=st.integers(0, 1000))
def test_views_of_a_sample_attract_and_are_in_the_body(name: str, collection: Collection, seed: int) -> None:
    strategy, collection = build(name), fit_for(name, collection)
    keys = batch_of_views(strategy, collection, seed)
    relation = strategy.relate(keys, keys, None)
    same_sample = (keys.sample[:, None] == keys.sample) & ~keys.same_item(keys)
    attraction = relation.positive[same_sample]
    assert (attraction == 1).all() if name not in SOFT else attraction.sum() > 0
    half = (np.array([12, 10, 8]) - 1) / 2
    if name == "multi_crop":
        keys = keys[keys.view < 2]  # properties of local crops are tested in test_multi_crop.py
    middle = np.linalg.solve(
        collection.affines[keys.scan][:, :3, :3],
        (keys.center_mm.numpy() - collection.affines[keys.scan][:, :3, 3])[..., None],
    )[..., 0]
    boxes, shapes = collection.body_boxes[keys.scan], collection.shapes[keys.scan]
    nearest = np.clip(middle, np.maximum(boxes[:, 0], half), np.minimum(boxes[:, 1] - 1, shapes - 1 - half))
    assert (np.abs(middle - nearest) <= 1).all(), (
        "a centre is inside the body, as far as the patch fits in the scan"
    )


@pytest.mark.parametrize("name", STRATEGIES)
@given(collection=collections, seed=st.integers(0, 1000))
def test_a_sample_depends_only_on_its_generator(name: str, collection: Collection, seed: int) -> None:
    strategy, collection = build(name), fit_for(name, collection)
    anchor = int(strategy.anchors(collection).ids[0])
    first, again = (strategy.sample(collection, anchor, np.random.default_rng(seed)) for _ in range(2))
    assert first == again


TWO_SCANS: dict[str, PairStrategy] = {
    "matched": SamePatient(),
    "free": SamePatient(position="free"),
    "only": SamePatient(same_session="only"),
    "never": SamePatient(same_session="never"),
    "longitudinal": Longitudinal(),
    "near": Longitudinal(max_gap_days=100),
    "cross_modality": CrossModality(across_frames="body"),
    "tabular": TabularNeighbours(columns={"age": 10.0}, k=1),
    "sum": Sum(parts=(Choice("same_patient"), Choice("longitudinal"))),
    "product": Product(parts=(Choice("longitudinal"), Choice("same_patient"))),
    "exclude": Exclude(inner=Choice("cross_modality", {"across_frames": "body"}), by="sex"),
    "hard": HardNegatives(inner=Choice("same_patient")),
}


@pytest.mark.parametrize("name", TWO_SCANS)
@pytest.mark.parametrize("is_placebo", [False, True])
@given(collection=gappy, seed=st.integers(0, 1000))
def test_a_sample_of_two_scans_never_pairs_a_scan_with_itself(
    name: str, is_placebo: bool, collection: Collection, seed: int
) -> None:
    strategy = TWO_SCANS[name]
    if is_placebo:
        collection = placebo(collection, strategy, seed)
    try:
        anchors = strategy.anchors(collection).ids
    except DataError:
        return  # an error: no scan has a partner
    for anchor in anchors.tolist():
        scans = [view.scan for view in strategy.sample(collection, anchor, np.random.default_rng(seed))]
        assert len(scans) == 2 and len(set(scans)) == 2 and anchor in scans
