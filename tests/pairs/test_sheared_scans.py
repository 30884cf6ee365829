"""Geometry on scans whose axes are not orthogonal: volumes, distances and gaps are in world mm."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.spatial import ConvexHull, HalfspaceIntersection

from medcl3d.core.collection import Collection
from medcl3d.core.geometry import Box, Triple, ViewSpec
from medcl3d.pairs.boxes import distance_mm, gap_mm, iou, iou_mm, start_at
from medcl3d.pairs.matching import corresponding_crops
from medcl3d.sampling.crops import view_affine
from tests.pairs.collections import make_collection

PATCH = (12, 10, 8)
offsets = st.tuples(st.integers(-7, 7), st.integers(-6, 6), st.integers(-5, 5))
sizes = st.tuples(st.integers(4, 14), st.integers(4, 14), st.integers(4, 14))


def one_scan(linear: np.ndarray, scans: int = 1) -> Collection:
    """Scans of one frame and of 60 voxels along each axis, with a linear map ``[3, 3]`` from voxels to mm."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = linear, (40, -70, 25)
    table = pd.DataFrame(
        {
            "scan": [f"s{i}" for i in range(scans)],
            "patient": "p",
            "session": "0",
            "modality": "t1",
            "frame": "f",
        },
        index=range(scans),
    )
    affines = np.tile(affine, (scans, 1, 1))
    affines[1:, :3, 3] += linear @ (0.5, 1.25, -2)  # the same axes, another origin
    shapes = np.full((scans, 3), 60)
    return dataclasses.replace(
        Collection.of(table, shapes, affines, np.array([[[0] * 3, [60] * 3]] * scans)), patch_size=PATCH
    )


def any_map(seed: int) -> np.ndarray:
    """A random invertible linear map with axes within the shear that `prepare` accepts."""
    rng = np.random.default_rng(seed)
    while True:
        axes = rng.normal(size=(3, 3))
        axes /= np.linalg.norm(axes, axis=0)
        if abs(np.linalg.det(axes)) > 0.05:
            return axes * rng.uniform(0.4, 6, 3)


def leaning(degrees: float) -> np.ndarray:
    """Voxels of 1 mm with the third axis sheared towards the second."""
    angle = np.radians(degrees)
    return np.array([[1, 0, 0], [0, 1, np.sin(angle)], [0, 0, np.cos(angle)]])


def half_spaces(affine: np.ndarray, box: Box) -> np.ndarray:
    """``Float64[6, 4]`` (n, c) with n x + c <= 0 in world mm: the inside of a box of voxels."""
    inverse = np.linalg.inv(affine)
    low, high = np.array(box.start) - 0.5, np.array(box.stop) - 0.5
    return np.concatenate(
        [np.c_[inverse[:3, :3], inverse[:3, 3] - high], np.c_[-inverse[:3, :3], low - inverse[:3, 3]]]
    )


def volume(spaces: np.ndarray, inside: np.ndarray) -> float:
    return float(
        ConvexHull(
            HalfspaceIntersection(
                spaces / np.linalg.norm(spaces[:, :3], axis=1)[:, None], inside
            ).intersections
        ).volume
    )


def world_iou(collection: Collection, first: ViewSpec, second: ViewSpec) -> float:
    """IoU of two boxes as polytopes in world mm, each with the affine of its own scan."""
    affines = collection.affines[[first.scan, second.scan]]
    spaces = [half_spaces(affine, view.box) for affine, view in zip(affines, (first, second), strict=True)]
    each = [
        volume(space, collection.world(np.array([v.scan]), v.box.center[None])[0])
        for space, v in zip(spaces, (first, second), strict=True)
    ]
    # The middle of the overlap, from the first scan's voxels, since the axes agree.
    moved = np.linalg.inv(affines[0]) @ affines[1] @ np.c_[[*second.box.start, 1], [*second.box.stop, 1]]
    low, high = np.maximum(first.box.start, moved[:3, 0]), np.minimum(first.box.stop, moved[:3, 1])
    if (high - low < 1e-6).any():
        return 0.0
    shared = volume(
        np.concatenate(spaces), collection.world(np.array([first.scan]), ((low + high - 1) / 2)[None])[0]
    )
    return shared / (sum(each) - shared)


@given(seed=st.integers(0, 100_000), offset=offsets, size=sizes, other=st.integers(0, 1))
def test_the_iou_is_that_of_the_polytopes_in_the_world(
    seed: int, offset: Triple, size: Triple, other: int
) -> None:
    collection = one_scan(any_map(seed), scans=2)
    start = (20, 20, 20)
    views = [
        ViewSpec(0, Box(start, PATCH)),
        ViewSpec(other, Box(tuple(np.add(start, offset).tolist()), size)),
    ]  # type: ignore[arg-type]
    keys = collection.keys(views, np.zeros(2), np.arange(2))
    found = iou_mm(keys, keys)
    expected = world_iou(collection, *views)
    assert found[0, 1].item() == pytest.approx(expected, abs=1e-6) and found[1, 0].item() == pytest.approx(
        expected, abs=1e-6
    )
    if other == 0:
        assert found[0, 1].item() == pytest.approx(iou(views[0].box, views[1].box), abs=1e-9), (
            "in one scan, voxels and mm agree"
        )


def test_the_iou_at_twenty_degrees_is_that_of_points_in_the_world() -> None:
    """Points drawn in world mm, some in one box and some in both."""
    collection = one_scan(leaning(20))
    views = [ViewSpec(0, Box((20, 20, 20), PATCH)), ViewSpec(0, Box((24, 23, 24), PATCH))]
    rng, low, high = np.random.default_rng(0), np.full(3, np.inf), np.full(3, -np.inf)
    for view in views:
        corners = np.array(
            [[view.box.start[k] - 0.5 + view.box.size[k] * (c >> k & 1) for k in range(3)] for c in range(8)]
        )
        world = collection.world(np.zeros(8, dtype=int), corners)
        low, high = np.minimum(low, world.min(0)), np.maximum(high, world.max(0))
    points = np.c_[rng.uniform(low, high, (400_000, 3)), np.ones(400_000)]
    inside = [(half_spaces(collection.affines[0], view.box) @ points.T <= 0).all(0) for view in views]
    keys = collection.keys(views, np.zeros(2), np.arange(2))
    expected = (inside[0] & inside[1]).sum() / (inside[0] | inside[1]).sum()
    assert iou_mm(keys, keys)[0, 1].item() == pytest.approx(expected, abs=0.005)


@given(seed=st.integers(0, 100_000), offset=offsets, axis=st.integers(0, 2))
def test_a_gap_is_along_the_axis_and_a_distance_in_world_mm(seed: int, offset: Triple, axis: int) -> None:
    collection = one_scan(any_map(seed))
    views = [
        ViewSpec(0, Box((20, 20, 20), PATCH)),
        ViewSpec(0, Box(tuple(np.add(20, offset).tolist()), PATCH)),
    ]  # type: ignore[arg-type]
    keys = collection.keys(views, np.zeros(2), np.arange(2))
    expected = abs(offset[axis]) * collection.spacings[0, axis]
    assert gap_mm(keys, keys, axis)[0, 1].item() == pytest.approx(expected, abs=1e-6), (
        "at any in-plane position"
    )
    points = dataclasses.replace(keys, position_mm=keys.center_mm)
    straight = np.linalg.norm(collection.affines[0, :3, :3] @ offset)
    assert distance_mm(points, points)[0, 1].item() == pytest.approx(straight, abs=1e-6)


@given(seed=st.integers(0, 100_000), target=st.tuples(*[st.integers(-30, 80)] * 3))
def test_a_missed_position_is_reported_in_world_mm(seed: int, target: Triple) -> None:
    collection = one_scan(any_map(seed))
    position = collection.world(np.array([0]), Box(target, PATCH).center[None])[0]
    start, miss = start_at(collection, 0, position)
    nearest = collection.world(np.array([0]), Box(tuple(start.tolist()), PATCH).center[None])[0]
    assert miss == pytest.approx(np.linalg.norm(nearest - position), abs=1e-6)


@given(seed=st.integers(0, 10_000))
def test_matched_crops_of_sheared_scans_have_one_position(seed: int) -> None:
    collection = make_collection(seed, 2, shear_degrees=30)
    middle = collection.affines[0].copy()
    collection.affines[1, :3, 3] = middle[:3, :3] @ (collection.shapes[0] / 2) + middle[:3, 3]
    collection.affines[1, :3, 3] -= collection.affines[1, :3, :3] @ (collection.shapes[1] / 2)
    collection = collection.with_columns({"frame": np.zeros(2, dtype=np.int64)})
    views = corresponding_crops(collection, 0, 1, 0.0, np.random.default_rng(seed))
    keys = collection.keys(views, np.zeros(2), np.arange(2))
    apart = keys.center_mm[1] - keys.center_mm[0]
    voxels = np.linalg.solve(collection.affines[1, :3, :3], apart.numpy())
    reached = start_at(collection, 1, keys.center_mm[0].numpy())[1] == 0
    assume(reached)
    assert (np.abs(voxels) <= 0.5 + 1e-6).all()


def test_the_views_affine_is_that_of_the_sheared_scan() -> None:
    collection = one_scan(leaning(25))
    view = ViewSpec(0, Box((10, 12, 14), (8, 8, 8)), shape=(4, 8, 16))
    affine = view_affine(collection, view)
    corner = affine @ torch.tensor([-0.5, -0.5, -0.5, 1], dtype=torch.float64)
    assert np.allclose(corner[:3], collection.world(np.array([0]), np.array([[9.5, 11.5, 13.5]]))[0])
