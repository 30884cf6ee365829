"""Weighted distances of pairs against quantiles of repeated pairs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from medcl3d.core.geometry import Box, ViewSpec
from medcl3d.core.relation import Relation
from medcl3d.pairs.overlapping_crops import OverlappingCrops
from medcl3d.pretraining.pair_measures import QUANTILES, PairFacts, distances_of
from tests.pairs.collections import make_collection
from tests.pairs.test_strategies import batch_of_views


def facts(keys, relation: Relation, items: str = "views") -> PairFacts:  # type: ignore[no-untyped-def]
    return PairFacts(items, keys, relation, {}, {})


def test_quantiles_equal_those_of_pairs_repeated_by_their_weights() -> None:
    collection = make_collection(3, 6)
    keys = batch_of_views(OverlappingCrops(), collection, 0)
    rng = np.random.default_rng(0)
    times = torch.from_numpy(rng.integers(0, 5, (len(keys), len(keys))))
    relation = Relation(times / 4.0, torch.from_numpy(rng.integers(0, 5, times.shape)) / 4.0)
    found = distances_of([facts(keys, relation), facts(keys, relation)])
    # Repeating the batch changes nothing.
    assert found == distances_of([facts(keys, relation)])
    body, world = (torch.cdist(points, points) for points in (keys.body, keys.center_mm))
    mm = torch.where(keys.frame[:, None] == keys.frame, world, body)
    same = keys.sample[:, None] == keys.sample
    for spread, weight in (
        (found.within, times * same),
        (found.beyond, times * ~same),
        (found.negatives, (relation.negative * 4).long()),
    ):
        repeated = np.sort(np.repeat(mm.numpy().ravel(), weight.numpy().ravel()))
        expected = [repeated[int(np.ceil(q * len(repeated))) - 1] for q in QUANTILES]
        assert spread.mm == pytest.approx(expected, abs=1e-4)
    assert sum(found.shares) == pytest.approx(1)


def test_the_share_of_positive_weight_by_origin() -> None:
    collection = make_collection(0, 4)
    box = Box((2, 2, 2), collection.patch_size)
    # Scan 0 twice in one sample, then in another sample; scan 1 is of the same patient, scan 2 of another.
    keys = collection.keys(
        [ViewSpec(scan, box) for scan in (0, 0, 0, 1, 2)],
        np.array([0, 0, 1, 2, 3]),
        np.array([0, 1, 0, 0, 0]),
    )
    positive = torch.zeros(5, 5)
    positive[0, 1:] = torch.tensor([0.4, 0.3, 0.2, 0.1])
    found = distances_of([facts(keys, Relation(positive, torch.zeros(5, 5)))])
    assert found.shares == pytest.approx((0.4, 0.3, 0.2, 0.1)) and found.negatives.mm is None
    assert found.within.iou == (1, 1, 1) and found.within.mm == (0, 0, 0)
    assert found.lines()[2] == "negatives: none" and found.lines()[3].startswith(
        "positive weight: 40% within the sample, 30% other samples"
    )


def test_boxes_of_two_frames_are_compared_along_the_axes_of_the_body() -> None:
    made = make_collection(0, 2)
    collection = dataclasses.replace(
        made,
        affines=np.stack([np.eye(4)] * 2),
        shapes=np.full((2, 3), 40),
        body_boxes=np.array([[[0] * 3, [40] * 3]] * 2),
    )
    views = [ViewSpec(0, Box((10, 10, 10), (12, 10, 8))), ViewSpec(1, Box((16, 10, 10), (12, 10, 8)))]
    keys = collection.keys(views, np.arange(2), np.zeros(2))
    both = torch.tensor([[0.0, 1], [1, 0]])
    found = distances_of([facts(keys, Relation(both, both))])
    assert found.beyond.mm == pytest.approx((6, 6, 6)) and found.beyond.iou == pytest.approx(
        (1 / 3, 1 / 3, 1 / 3)
    )
    assert distances_of([facts(keys, Relation(both, both), "points")]).beyond.iou is None
