"""Adjacent slabs, in mm."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from medcl3d.core.collection import Collection
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.pairs.adjacent_slices import AdjacentSlices
from medcl3d.pairs.boxes import gap_mm
from tests.pairs.collections import collections, make_collection


@given(
    collection=collections,
    seed=st.integers(0, 1000),
    axis=st.integers(0, 2),
    gap=st.floats(1, 15),
    thick=st.floats(1, 20),
)
def test_slabs_are_within_the_gap_and_never_coincide(
    collection: Collection, seed: int, axis: int, gap: float, thick: float
) -> None:
    strategy = AdjacentSlices(axis=axis, thickness_mm=thick, max_gap_mm=gap, ignore_mm=gap)  # type: ignore[arg-type]
    try:
        anchor = int(strategy.anchors(collection).ids[0])
    except DataError:
        assume(False)
    views = strategy.sample(collection, anchor, np.random.default_rng(seed))
    keys = collection.keys(views, np.zeros(2), np.arange(2))
    assert 0 < gap_mm(keys, keys, axis)[0, 1] <= gap + 1e-6
    across = [k for k in range(3) if k != axis]
    assert all(views[0].box.start[k] == views[1].box.start[k] for k in across)
    spacing = collection.spacings[anchor, axis]
    assert abs(views[0].box.size[axis] * spacing - thick) <= max(spacing / 2, spacing - thick) + 1e-6
    assert {view.out_shape for view in views} == {collection.patch_size}


def test_near_slabs_attract_farther_ones_are_ignored_and_the_rest_repels() -> None:
    collection = dataclasses.replace(
        make_collection(0, 2), affines=np.tile(np.diag([1.0, 1, 2, 1]), (2, 1, 1))
    )
    strategy = AdjacentSlices(axis=2, max_gap_mm=4, ignore_mm=8)
    first = strategy.sample(collection, 0, np.random.default_rng(0))[0]
    d, h, _ = first.box.start
    views = [
        dataclasses.replace(first, box=dataclasses.replace(first.box, start=(d, h, k))) for k in (0, 2, 4, 6)
    ]
    views.append(dataclasses.replace(views[0], scan=1))
    keys = collection.keys(views, np.arange(5), np.zeros(5))
    relation = strategy.relate(keys[:1], keys, None)
    assert relation.positive[0].tolist() == [0, 1, 0, 0, 0]
    assert relation.negative[0].tolist() == [0, 0, 0, 1, 1]


def test_too_few_or_too_coarse_slices_are_an_error_with_a_remedy() -> None:
    collection = make_collection(0, 3)
    with pytest.raises(
        DataError, match=r"3 left out: its slices are farther apart than max_gap_mm 0.1 .* raise max_gap_mm"
    ):
        AdjacentSlices(max_gap_mm=0.1).anchors(collection)
    flat = dataclasses.replace(collection, patch_size=(12, 10, 100))
    with pytest.raises(DataError, match=r"3 left out: it has too few slices along axis 2"):
        AdjacentSlices(max_gap_mm=10).anchors(
            dataclasses.replace(
                flat, shapes=np.full((3, 3), 100), body_boxes=np.array([[[0] * 3, [100] * 3]] * 3)
            )
        )


def test_an_ignored_range_below_the_gap_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"ignore_mm = 1.0 is below max_gap_mm = 5.0"):
        AdjacentSlices(ignore_mm=1.0)
