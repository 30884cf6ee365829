"""Slabs at one normalised position of the body."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medcl3d.core.collection import Collection
from medcl3d.core.geometry import Triple
from medcl3d.core.keys import Keys
from medcl3d.pairs.slice_position import SlicePosition
from medcl3d.preprocessing.options import prepare_options
from medcl3d.preprocessing.prepare import prepare
from medcl3d.store.store import Store
from tests.pairs.collections import collections, make_collection
from tests.pairs.test_strategies import batch_of_views


def true_fractions(collection: Collection, keys: object, axis: int) -> np.ndarray:
    """Positions by hand: voxel coordinates of the centre against the body's first and last voxel borders."""
    found = []
    for scan, center in zip(keys.scan.tolist(), keys.center_mm.numpy(), strict=True):  # type: ignore[attr-defined]
        affine = collection.affines[scan]
        voxel = np.linalg.solve(affine[:3, :3], center - affine[:3, 3])[axis]
        low, stop = collection.body_boxes[scan][:, axis]
        found.append((voxel - (low - 0.5)) / (stop - low))
    return np.array(found)


def iou_in_plane(keys: Keys) -> torch.Tensor:
    """``Float64[N, N]``: in-plane overlap of the boxes, in body mm, if the scans' axes are those of the
    body.
    """
    low, high = keys.body - keys.size_mm / 2, keys.body + keys.size_mm / 2
    shared = (
        (torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)).clamp(min=0)[..., :2].prod(-1)
    )
    area = keys.size_mm[:, :2].prod(-1)
    return shared / (area[:, None] + area - shared)


@given(
    collection=collections, seed=st.integers(0, 1000), axis=st.integers(0, 2), threshold=st.floats(0.02, 0.5)
)
def test_positions_within_the_threshold_attract_across_patients(
    collection: Collection, seed: int, axis: int, threshold: float
) -> None:
    strategy = SlicePosition(axis=axis, threshold=threshold, thickness_mm=4.0)  # type: ignore[arg-type]
    keys = batch_of_views(strategy, collection, seed, count=8)
    position = true_fractions(collection, keys, axis)
    near = np.abs(position[:, None] - position) < threshold
    clear = np.abs(np.abs(position[:, None] - position) - threshold) > 1e-9
    expected = torch.from_numpy(near) | (keys.sample[:, None] == keys.sample)
    use = torch.from_numpy(clear) & ~keys.same_item(keys)
    relation = strategy.relate(keys, keys, None)
    assert torch.equal(relation.positive[use] == 1, expected[use])
    assert torch.equal(relation.negative[use], 1 - relation.positive[use])


@given(
    collection=collections,
    seed=st.integers(0, 1000),
    axis=st.integers(0, 2),
    sides=st.tuples(*[st.integers(4, 40)] * 3),
)
def test_a_slab_holds_the_whole_body_in_its_plane(
    collection: Collection, seed: int, axis: int, sides: Triple
) -> None:
    collection = dataclasses.replace(collection, patch_size=sides)
    strategy = SlicePosition(axis=axis, thickness_mm=4.0)  # type: ignore[arg-type]
    across = [k for k in range(3) if k != axis]
    for scan in range(len(collection)):
        view = strategy.sample(collection, scan, np.random.default_rng(seed))[0]
        low, stop = collection.body_boxes[scan]
        start, end, body = np.array(view.box.start), np.array(view.box.stop), stop - low
        assert view.out_shape == sides
        assert np.array_equal((low - start)[across], (end - stop)[across]), "the body is in its middle"
        assert (start <= low)[across].all(), "the whole body"
        assert (start == low)[across].any(), "the longer side is as long as the body"
        longer = max(across, key=lambda k: body[k] / sides[k])
        expected = body[longer] / sides[longer] * np.array(sides)
        assert (np.abs(end - start - expected)[across] < 2).all(), (
            "one factor for both sides, up to rounding to voxels"
        )


def test_positives_across_patients_have_one_position_and_overlap_in_plane() -> None:
    collection = dataclasses.replace(make_collection(1, 8), affines=np.tile(np.eye(4), (8, 1, 1)))
    keys = batch_of_views(SlicePosition(), collection, 0, count=40)
    positive = SlicePosition().relate(keys, keys, None).positive == 1
    across = (keys.patient[:, None] != keys.patient) & positive
    assert int(across.sum()) > 100
    assert float((keys.body[:, None] - keys.body)[across][:, :2].norm(dim=1).max()) < 1e-9
    assert float(iou_in_plane(keys)[across].mean()) > 0.5


@pytest.mark.slow
def test_positives_across_patients_overlap_in_plane_on_real_scans(shared_data: Path, tmp_path: Path) -> None:
    """Cubes drawn anywhere in the plane were 74 mm apart (median), with an IoU of 0.10: that of the
    negatives.
    """
    given = prepare_options("bids", {"spacing_mm": [4, 4, 4]})
    prepare("bids", shared_data / "ixi40", tmp_path / "store", fields=given.fields, options=given.options)
    collection = dataclasses.replace(Store.open(tmp_path / "store").collection, patch_size=(16, 16, 16))
    keys = batch_of_views(SlicePosition(thickness_mm=32), collection, 0, count=300)
    positive = SlicePosition().relate(keys, keys, None).positive == 1
    across = (keys.patient[:, None] != keys.patient) & positive
    distance = (keys.body[:, None, :2] - keys.body[:, :2]).norm(dim=-1)
    assert float(distance[across].quantile(0.9)) < 1
    assert float(iou_in_plane(keys)[across].mean()) > 0.8


@given(collection=collections, seed=st.integers(0, 1000), parts=st.integers(2, 6))
def test_partitions_attract_within_themselves(collection: Collection, seed: int, parts: int) -> None:
    strategy = SlicePosition(num_partitions=parts)
    keys = batch_of_views(strategy, collection, seed, count=8)
    part = torch.from_numpy(
        np.clip(np.floor(true_fractions(collection, keys, 2) * parts + 1e-12), 0, parts - 1)
    )
    other = ~keys.same_item(keys)
    expected = (part[:, None] == part) | (keys.sample[:, None] == keys.sample)
    assert torch.equal(strategy.relate(keys, keys, None).positive[other] == 1, expected[other])


def test_a_slab_has_the_configured_thickness_and_is_one_per_sample() -> None:
    collection = make_collection(3, 4)
    views = SlicePosition(axis=1, thickness_mm=6.0, num_views=3).sample(
        collection, 2, np.random.default_rng(0)
    )
    assert len(set(views)) == 1 and len(views) == 3
    assert (
        views[0].box.size[1] == max(1, round(6.0 / collection.spacings[2, 1]))
        and views[0].out_shape == collection.patch_size
    )
