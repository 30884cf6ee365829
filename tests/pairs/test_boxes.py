"""Positions of boxes and distances between them in mm, compared with values computed by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.spatial.transform import Rotation

from medcl3d.core.collection import Collection
from medcl3d.core.geometry import Box, ViewSpec, triple
from medcl3d.core.keys import Keys
from medcl3d.pairs.boxes import (
    distance_mm,
    gap_mm,
    iou,
    iou_mm,
    overlap_offset,
    random_box,
    slab_size,
    start_at,
    start_range,
    whole_body_across,
)
from tests.reference.boxes import iou_of_all_pairs

SPACING = np.array([0.5, 2.0, 3.0])
ROTATION = Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix()
SHEARED = ROTATION @ np.array(
    [[1, 0.6, 0], [0, 0.8, 0], [0, 0, 1.0]]
)  # the second axis is sheared towards the first, with length 1


def collection_of(
    body: tuple[tuple[int, int, int], tuple[int, int, int]] | None = None,
    shape: tuple[int, int, int] = (40, 50, 60),
    patch_size: tuple[int, int, int] = (8, 9, 10),
    num: int = 1,
    frames: list[str] | None = None,
    rotations: list[np.ndarray] | None = None,
) -> Collection:
    """Scans of 0.5 x 2 x 3 mm with rotated axes; `body`: first and last-plus-one voxel, or the whole scan."""
    affines = np.tile(np.eye(4), (num, 1, 1))
    for affine, rotation in zip(affines, rotations or [ROTATION] * num, strict=True):
        affine[:3, :3], affine[:3, 3] = rotation * SPACING, (10, -20, 30)
    names = [f"s{i}" for i in range(num)]
    table = pd.DataFrame({"scan": names, "patient": names, "frame": frames or names})
    boxes = np.array([body or ((0, 0, 0), shape)] * num)
    return replace(Collection.of(table, np.array([shape] * num), affines, boxes), patch_size=patch_size)


def keys_of(collection: Collection, *views: tuple[int, Box]) -> Keys:
    return collection.keys(
        [ViewSpec(scan, box) for scan, box in views], np.arange(len(views)), np.zeros(len(views))
    )


def test_the_centre_of_a_patch_reaches_the_first_and_the_last_voxel_of_the_body() -> None:
    """The centre of a patch of 9 voxels is on a voxel, that of 8 between two."""
    low, high = start_range(collection_of(body=((12, 13, 14), (20, 30, 40))), 0)
    assert low.tolist() == [9, 9, 10]  # centres 12.5 (12 is the first voxel), 13 and 14.5
    assert high.tolist() == [
        15,
        25,
        34,
    ]  # centres 18.5 (19 is the last voxel; 19.5 is its far face), 29 and 38.5
    assert low.dtype == high.dtype == np.int64


def test_a_patch_is_inside_the_scan_or_contains_it() -> None:
    low, high = start_range(collection_of(), 0)
    assert low.tolist() == [0, 0, 0] and high.tolist() == [32, 41, 50]
    low, high = start_range(collection_of(patch_size=(50, 50, 63)), 0)
    assert low.tolist() == [-10, 0, -3] and high.tolist() == [0, 0, 0]
    low, high = start_range(collection_of(body=((0, 0, 0), (1, 2, 1)), patch_size=(40, 50, 5)), 0)
    assert low.tolist() == [0, 0, 0] and high.tolist() == [0, 0, 0]
    low, high = start_range(collection_of(body=((39, 49, 59), (40, 50, 60)), patch_size=(8, 9, 5)), 0)
    assert low.tolist() == high.tolist() == [32, 41, 55]


def test_a_body_of_one_voxel_has_a_patch() -> None:
    """The centre of an even patch is between two voxels, so it is never in a body of one slice."""
    low, high = start_range(collection_of(body=((12, 13, 14), (13, 14, 15))), 0)
    assert low.tolist() == high.tolist() == [9, 9, 10]  # centres 12.5, 13 and 14.5
    one_slice = collection_of(shape=(40, 50, 1))
    assert random_box(one_slice, 0, np.random.default_rng(0)).start[2] in range(-9, 1)


def test_a_random_box_is_uniform_in_the_body() -> None:
    collection = collection_of(body=((12, 13, 14), (20, 30, 40)))
    rng = np.random.default_rng(0)
    starts = np.array([random_box(collection, 0, rng).start for _ in range(3000)])
    for axis, (low, high) in enumerate(((9, 15), (9, 25), (10, 34))):
        counts = np.bincount(starts[:, axis] - low, minlength=high - low + 1)
        assert len(counts) == high - low + 1 and stats.chisquare(counts).pvalue > 1e-3
    assert np.abs(np.corrcoef(starts.T) - np.eye(3)).max() < 0.08
    assert random_box(collection, 0, rng).size == (8, 9, 10)


def test_a_slab_has_the_given_thickness_and_at_least_one_voxel() -> None:
    collection = collection_of()
    assert slab_size(collection, 0, 0, 6.0) == (12, 9, 10)
    assert slab_size(collection, 0, 1, 6.0) == (8, 3, 10)
    assert slab_size(collection, 0, 2, 6.0) == (8, 9, 2)
    assert slab_size(collection, 0, 2, 1.0) == (8, 9, 1)
    assert slab_size(collection, 0, 2, None) == (8, 9, 10)


def test_a_slab_is_widened_to_the_whole_body_in_the_ratio_of_the_patch() -> None:
    """A body of 20 x 30 voxels in a patch of 9 x 10: a factor of 3, so 27 x 30 about its middle."""
    collection = collection_of(body=((10, 10, 10), (26, 30, 40)))
    wide = whole_body_across(collection, 0, 0, Box((12, 13, 14), (3, 9, 10)))
    assert (wide.start, wide.stop) == ((12, 6, 10), (15, 34, 40))
    wide = whole_body_across(collection, 0, 1, Box((11, 13, 14), (8, 2, 10)))
    assert (wide.start, wide.stop) == ((6, 13, 10), (30, 15, 40))
    wide = whole_body_across(collection, 0, 2, Box((11, 13, 14), (8, 9, 1)))
    assert (wide.start, wide.stop) == ((9, 10, 14), (27, 30, 15))


@pytest.mark.parametrize("patch", range(1, 20))
def test_the_longer_side_of_a_widened_slab_is_the_body_exactly(patch: int) -> None:
    for length in range(1, 50):
        collection = collection_of(body=((5, 5, 5), (6, 5 + length, 6)), patch_size=(1, patch, patch))
        wide = whole_body_across(collection, 0, 0, Box((5, 5, 5), (1, 1, 1)))
        assert (wide.start[1], wide.stop[1]) == (5, 5 + length)


def test_the_start_at_a_position_centres_the_patch_on_it() -> None:
    collection = collection_of()
    box = Box((7, 11, 23), (8, 9, 10))
    start, missed_mm = start_at(collection, 0, collection.world(np.array([0]), box.center[None])[0])
    assert start.tolist() == [7, 11, 23] and start.dtype == np.int64
    assert missed_mm == 0
    nearby = collection.world(np.array([0]), box.center[None] + [0.4, -0.4, 0.4])[0]
    start, missed_mm = start_at(collection, 0, nearby)
    assert start.tolist() == [7, 11, 23] and missed_mm == 0  # rounded to a voxel


@pytest.mark.parametrize(
    ("beyond", "start", "missed_mm"),
    [
        ((6, 0, 0), (32, 11, 23), 3.0),
        ((0, -5, 0), (7, 0, 23), 10.0),
        ((0, 0, 4), (7, 11, 50), 12.0),
        ((6, -2, 4), (32, 0, 50), 13.0),
    ],
)
def test_a_position_outside_the_scan_is_missed_by_mm(
    beyond: tuple[int, int, int], start: tuple[int, int, int], missed_mm: float
) -> None:
    """6 voxels of 0.5 mm are 3 mm, 2 of 2 mm are 4, 4 of 3 mm are 12; together they are 13 mm."""
    collection = collection_of()
    border = np.where(np.array(beyond) > 0, (32, 41, 50), np.where(np.array(beyond) < 0, 0, (7, 11, 23)))
    center = border + np.array(beyond) + [3.5, 4, 4.5]
    found, missed = start_at(collection, 0, collection.world(np.array([0]), center[None])[0])
    assert tuple(found) == start
    assert missed == pytest.approx(missed_mm)


def test_the_miss_on_a_sheared_scan_is_in_world_mm() -> None:
    """6 voxels past the first axis and 5 before the second: 3 mm and -10 mm along oblique axes."""
    collection = collection_of(rotations=[SHEARED])
    center = np.array([41.5, -1, 27.5])
    found, missed = start_at(collection, 0, collection.world(np.array([0]), center[None])[0])
    assert found.tolist() == [32, 0, 23]
    assert missed == pytest.approx(np.hypot(3 - 0.6 * 10, 0.8 * 10))


def test_iou_of_boxes() -> None:
    box = Box((2, 3, 4), (4, 6, 8))
    assert iou(box, box) == 1
    assert iou(box, Box((4, 3, 4), (4, 6, 8))) == pytest.approx(1 / 3)
    assert iou(box, Box((4, 6, 8), (4, 6, 8))) == pytest.approx(24 / (2 * 192 - 24))
    assert iou(box, Box((3, 4, 5), (2, 3, 4))) == pytest.approx(24 / 192)
    assert iou(box, Box((6, 3, 4), (4, 6, 8))) == 0  # they touch
    assert iou(box, Box((7, 10, 4), (4, 6, 8))) == 0  # apart along two axes


@pytest.mark.parametrize("axes", [ROTATION, SHEARED])
def test_iou_in_mm_is_that_of_the_voxels_in_one_scan(axes: np.ndarray) -> None:
    collection, rng = collection_of(rotations=[axes]), np.random.default_rng(0)
    boxes = [Box(triple(rng.integers(0, 12, 3)), triple(rng.integers(5, 12, 3))) for _ in range(30)]
    keys = keys_of(collection, *((0, box) for box in boxes))
    expected = torch.tensor([[iou(a, b) for b in boxes[:20]] for a in boxes], dtype=torch.float64)
    assert ((expected > 0) & (expected < 1)).double().mean() > 0.3
    torch.testing.assert_close(iou_mm(keys, keys[:20]), expected)


def test_iou_in_mm_compares_scans_of_one_frame_whose_axes_agree() -> None:
    other = Rotation.from_euler("z", 0.5, degrees=True).as_matrix() @ ROTATION
    rotations = [ROTATION, ROTATION, ROTATION, other]
    collection = collection_of(num=4, frames=["a", "a", "b", "a"], rotations=rotations)
    box = Box((2, 3, 4), (4, 6, 8))
    keys = keys_of(collection, (0, box), (1, Box((4, 3, 4), (4, 6, 8))), (2, box), (3, box))
    assert iou_mm(keys[:1], keys)[0].tolist() == pytest.approx([1, 1 / 3, 0, 0])


@pytest.mark.parametrize("num_frames", [1, 2, 3, 40])
@pytest.mark.parametrize("per_frame", [1, 8])
@pytest.mark.parametrize("one_map", [False, True])
def test_iou_in_mm_equals_that_of_the_slow_formula(num_frames: int, per_frame: int, one_map: bool) -> None:
    """With few pairs of one frame and with many; half of the frames have scans whose axes differ.

    one_map: all scans have the same axes
    """
    rng, maps = np.random.default_rng(num_frames), [SHEARED] * 2 * num_frames if one_map else []
    for frame in range(0 if one_map else num_frames):
        turned = Rotation.from_rotvec(rng.normal(size=3) * (1e-5, 1e-1)[frame % 2]).as_matrix()
        base = Rotation.random(random_state=rng).as_matrix() @ ROTATION.T @ SHEARED
        maps += [base, turned @ base]
    frames = [f"f{i // 2}" for i in range(2 * num_frames)]
    collection = collection_of(num=2 * num_frames, frames=frames, rotations=maps)
    scans = np.repeat(np.arange(2 * num_frames), per_frame)
    boxes = [Box(triple(rng.integers(0, 12, 3)), triple(rng.integers(5, 12, 3))) for _ in scans]
    keys = keys_of(collection, *zip(scans.tolist(), boxes, strict=True))
    found, expected = iou_mm(keys, keys[::2]), iou_of_all_pairs(keys, keys[::2])
    # Equal to the bit where it was tried; another BLAS may round the products of matrices differently.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    assert torch.equal(found == 0, expected == 0) and (expected > 0).any()


def test_few_pairs_and_all_pairs_have_one_iou(monkeypatch: pytest.MonkeyPatch) -> None:
    """Axes agree if no number differs by more than 1e-3, though the sum of squares is larger."""
    turned = Rotation.from_rotvec([7e-4] * 3).as_matrix()
    collection = collection_of(num=3, frames=["a"] * 3, rotations=[np.eye(3), SHEARED, turned])
    rng = np.random.default_rng(0)
    boxes = [Box(triple(rng.integers(0, 12, 3)), triple(rng.integers(5, 12, 3))) for _ in range(60)]
    keys = keys_of(collection, *((i % 3, box) for i, box in enumerate(boxes)))
    found = []
    for few in (0.0, 1.0):
        monkeypatch.setattr("medcl3d.core.equal_pairs.FEW", few)
        found.append(iou_mm(keys, keys))
    torch.testing.assert_close(*found, rtol=0, atol=1e-13)
    scan = keys.scan[:, None] * 3 + keys.scan
    assert [bool((found[0][scan == pair] > 0).any()) for pair in (1, 2, 3, 6)] == [False, True, False, True]


def test_distances_are_mm_and_infinite_between_frames() -> None:
    collection = collection_of(num=3, frames=["a", "a", "b"])
    keys = keys_of(collection, *((scan, Box((0, 0, 0), (1, 1, 1))) for scan in range(3)))
    positions = torch.tensor([[0.0, 0, 0], [3, 4, 12], [3, 4, 12]], dtype=torch.float64)
    found = distance_mm(replace(keys, position_mm=positions), replace(keys, position_mm=positions))
    assert found.tolist() == [[0, 13, np.inf], [13, 0, np.inf], [np.inf, np.inf, 0]]


def test_distances_far_from_the_origin_are_precise() -> None:
    keys = keys_of(collection_of(), *[(0, Box((0, 0, 0), (1, 1, 1)))] * 40)
    far = torch.full((40, 3), 1e6, dtype=torch.float64)
    near = replace(keys, position_mm=far + torch.tensor([1e-3, 0, 0], dtype=torch.float64))
    close = distance_mm(replace(keys, position_mm=far), near)
    np.testing.assert_allclose(close, 1e-3, rtol=1e-4)


@pytest.mark.parametrize("axes", [ROTATION, SHEARED])
@pytest.mark.parametrize("axis", range(3))
def test_the_gap_along_an_axis_is_in_mm_at_any_in_plane_position(axis: int, axes: np.ndarray) -> None:
    collection = collection_of(rotations=[axes])
    shifts = [(0, 0, 0), (4, 5, 6), (-2, 3, 1)]
    keys = keys_of(collection, *((0, Box((10 + a, 10 + b, 10 + c), (8, 9, 10))) for a, b, c in shifts))
    along = np.array(shifts)[:, axis] * SPACING[axis]
    np.testing.assert_allclose(gap_mm(keys[:2], keys, axis), np.abs(along[:2, None] - along), atol=1e-9)


@pytest.mark.parametrize("target", [0.05, 0.3, 0.7, 1.0])
def test_shifted_boxes_have_the_target_iou(target: float) -> None:
    rng, size = np.random.default_rng(0), np.array([10, 20, 30])
    for _ in range(100):
        shift = overlap_offset(size, np.array([100, 100, 100]), target, rng)
        shared = np.prod(np.maximum(size - np.abs(shift), 0))
        assert shared / (2 * np.prod(size) - shared) == pytest.approx(target)
        tight = np.array([2, 20, 30])
        shift = overlap_offset(size, tight, target, rng)
        shared = np.prod(np.maximum(size - np.abs(shift), 0))
        assert shared / (2 * np.prod(size) - shared) == pytest.approx(target)
        assert (np.abs(shift) <= tight + 1e-9).all()


def test_a_shift_exceeds_the_room_if_the_iou_is_unreachable() -> None:
    """Strategies compare it with the largest possible shift and draw again."""
    rng, size = np.random.default_rng(0), np.array([10, 20, 30])
    for room in (np.array([1, 2, 3]), np.zeros(3, dtype=np.int64)):
        for _ in range(20):
            shift = overlap_offset(size, room, 0.1, rng)
            shared = np.prod(size - np.abs(shift))
            assert shared / (2 * np.prod(size) - shared) == pytest.approx(0.1)
            assert (np.abs(shift) > room).any()


def test_shifts_have_both_signs_and_axes_are_exchangeable() -> None:
    rng, size = np.random.default_rng(0), np.array([10, 20, 30])
    shifts = np.array([overlap_offset(size, np.array([100, 100, 100]), 0.2, rng) for _ in range(2000)]) / size
    assert np.abs((shifts > 0).mean(0) - 0.5).max() < 4 * 0.5 / np.sqrt(2000)
    signs = Counter(map(tuple, (shifts > 0).tolist()))
    assert len(signs) == 8 and min(signs.values()) > 2000 / 8 * 0.75  # each axis has its own
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert stats.ks_2samp(np.abs(shifts[:, first]), np.abs(shifts[:, second])).pvalue > 1e-3
    # The first of three axes is log-uniform between all of the overlap and none; each axis is first equally
    # often.
    shared = 2 * 0.2 / (1 + 0.2)
    logs = np.log(1 - np.abs(shifts)) / np.log(shared)
    assert np.isclose(logs.sum(1), 1).all() and logs.min() >= -1e-9 and logs.max() <= 1 + 1e-9
    assert stats.kstest(logs[:, 0], three_parts).pvalue > 1e-3


def three_parts(x: np.ndarray) -> np.ndarray:
    """Distribution of an axis's part: u, (1 - u) v or (1 - u)(1 - v), equally likely; u, v uniform."""
    x = np.clip(x, 1e-12, 1)
    return (x + 2 * (x - x * np.log(x))) / 3
