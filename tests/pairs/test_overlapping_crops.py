"""Overlaps are in the configured range, in mm."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medcl3d.core.collection import Collection
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.pairs.boxes import iou, iou_mm
from medcl3d.pairs.overlapping_crops import OverlappingCrops
from tests.pairs.collections import collections, make_collection
from tests.reference.boxes import two_boxes


def measured_iou(
    collection: Collection, keys_scan: int, first: tuple[int, ...], second: tuple[int, ...]
) -> float:
    """Monte Carlo in world mm: the fraction of points of either box that are in both."""
    rng = np.random.default_rng(0)
    size = np.array(collection.patch_size)
    low, high = np.minimum(first, second) - 0.5, np.maximum(first, second) + size - 0.5
    world = collection.world(np.full(200_000, keys_scan), rng.uniform(low, high, (200_000, 3)))
    affine = np.linalg.inv(collection.affines[keys_scan])
    voxel = world @ affine[:3, :3].T + affine[:3, 3]
    inside = [
        ((voxel >= np.array(start) - 0.5) & (voxel < np.array(start) + size - 0.5)).all(1)
        for start in (first, second)
    ]
    return float((inside[0] & inside[1]).sum() / (inside[0] | inside[1]).sum())


@given(
    collection=collections,
    seed=st.integers(0, 1000),
    low=st.floats(0.05, 0.6),
    width=st.floats(0.1, 0.4),
    num_views=st.integers(2, 3),
)
def test_every_pair_has_an_iou_in_the_range(
    collection: Collection, seed: int, low: float, width: float, num_views: int
) -> None:
    strategy = OverlappingCrops(min_iou=low, max_iou=min(1.0, low + width), num_views=num_views)
    anchor = int(strategy.anchors(collection).ids[0])
    views = strategy.sample(collection, anchor, np.random.default_rng(seed))
    keys = collection.keys(views, np.zeros(num_views), np.arange(num_views))
    overlap = iou_mm(keys, keys)[~torch.eye(num_views, dtype=torch.bool)]
    assert (overlap >= low - 1e-6).all() and (overlap <= low + width + 1e-6).all()


@pytest.mark.parametrize("room", [(40, 30, 20), (5, 2, 1), (40, 0, 3)])
def test_two_boxes_are_those_drawn_box_by_box(room: tuple[int, int, int]) -> None:
    collection = dataclasses.replace(make_collection(0, 1), patch_size=(12, 10, 8))
    low, high = np.array([-3, 0, 4]), np.array([-3, 0, 4]) + room
    drawn = []
    for seed in range(100):
        for lowest, highest in ((0.3, 0.8), (0.05, 0.95)):
            strategy = OverlappingCrops(min_iou=lowest, max_iou=highest)
            one, two = np.random.default_rng(seed), np.random.default_rng(seed)
            drawn.append(strategy._first_two(collection, low, high, one))
            assert drawn[-1] == two_boxes(np.array([12, 10, 8]), low, high, lowest, highest, two)
            assert one.bit_generator.state == two.bit_generator.state
    assert any(drawn)


def test_the_iou_is_that_of_the_boxes_in_the_world() -> None:
    collection = make_collection(3, 2)
    views = OverlappingCrops(min_iou=0.2, max_iou=0.5).sample(collection, 0, np.random.default_rng(1))
    keys = collection.keys(views, np.zeros(2), np.arange(2))
    reported = iou_mm(keys, keys)[0, 1].item()
    assert reported == pytest.approx(
        measured_iou(collection, 0, views[0].box.start, views[1].box.start), abs=0.01
    )
    assert reported == pytest.approx(iou(views[0].box, views[1].box), abs=1e-9)


def test_the_iou_is_uniform_over_the_range() -> None:
    collection = make_collection(5, 1, patch_size=(32, 32, 32), smallest=64)
    strategy = OverlappingCrops(min_iou=0.2, max_iou=0.8)
    rng = np.random.default_rng(0)
    drawn = [iou(*(view.box for view in strategy.sample(collection, 0, rng))) for _ in range(600)]
    share = np.histogram(drawn, bins=4, range=(0.2, 0.8))[0] / 600
    assert (np.abs(share - 0.25) < 0.08).all(), share


def test_scans_without_common_axes_have_an_iou_of_zero() -> None:
    collection = make_collection(1, 2)
    keys = collection.keys(
        [OverlappingCrops().sample(collection, i, np.random.default_rng(0))[0] for i in range(2)],
        np.arange(2),
        np.zeros(2),
    )
    assert iou_mm(keys, keys)[0, 1] == 0
    assert iou_mm(keys, keys)[0, 0] == pytest.approx(1.0)


@pytest.mark.parametrize(("same_scan", "repelled"), [("ignore", 0.0), ("negative", 1.0)])
def test_other_pairs_of_a_scan(same_scan: str, repelled: float) -> None:
    collection = make_collection(2, 1, smallest=60)
    strategy = OverlappingCrops(min_iou=0.5, max_iou=0.9, same_scan=same_scan)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    views = [view for _ in range(8) for view in strategy.sample(collection, 0, rng)]
    keys = collection.keys(views, np.repeat(np.arange(8), 2), np.tile([0, 1], 8))
    relation = strategy.relate(keys, keys, None)
    far = (iou_mm(keys, keys) < 0.5) & ~torch.eye(16, dtype=torch.bool)
    assert far.any() and (relation.negative[far] == repelled).all() and (relation.positive[far] == 0).all()


def test_scans_too_small_for_the_range_are_left_out_and_counted() -> None:
    collection = make_collection(4, 3)
    small = dataclasses.replace(collection, shapes=collection.shapes.copy())
    small.shapes[1] = small.patch_size
    small.body_boxes[1] = [[0, 0, 0], small.patch_size]
    anchors = OverlappingCrops(min_iou=0.1, max_iou=0.5).anchors(small)
    assert anchors.ids.tolist() == [0, 2] and sum(anchors.left_out.values()) == 1


def test_a_collection_without_anchors_is_an_error_with_a_remedy() -> None:
    collection = make_collection(4, 1)
    collection = dataclasses.replace(
        collection,
        shapes=np.array([collection.patch_size]),
        body_boxes=np.array([[[0, 0, 0], collection.patch_size]]),
    )
    with pytest.raises(DataError, match=r"1 left out: no two crops .* smaller data.patch_size"):
        OverlappingCrops(max_iou=0.5).anchors(collection)


def test_a_reversed_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"min_iou = 0.9 exceeds max_iou = 0.5"):
        OverlappingCrops(min_iou=0.9, max_iou=0.5)
