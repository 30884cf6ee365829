"""Attraction by the IoU of two crops, in mm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medcl3d.core.collection import Collection
from medcl3d.core.errors import ConfigError
from medcl3d.pairs.physical_overlap import PhysicalOverlap
from tests.pairs.collections import collections
from tests.pairs.test_strategies import batch_of_views


@given(
    collection=collections,
    seed=st.integers(0, 1000),
    gamma=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    kappa=st.floats(0.1, 1.0),
)
def test_weights_follow_the_overlap(collection: Collection, seed: int, gamma: float, kappa: float) -> None:
    strategy = PhysicalOverlap(gamma=gamma, kappa=kappa)
    keys = batch_of_views(strategy, collection, seed, count=8)
    relation = strategy.relate(keys, keys, None)
    voxel = np.einsum(
        "nij,nj->ni", np.linalg.inv(collection.affines[keys.scan.numpy(), :3, :3]), keys.center_mm.numpy()
    )
    size = np.array(collection.patch_size)
    for i in range(len(keys)):
        for j in range(len(keys)):
            if i == j:
                continue
            # Boxes of one size on one grid: the shared volume by hand.
            shared = (
                np.prod(np.maximum(0, size - np.abs(voxel[i] - voxel[j])))
                if keys.scan[i] == keys.scan[j]
                else 0.0
            )
            overlap = shared / (2 * np.prod(size) - shared)
            expected = overlap**gamma if overlap > 1e-9 else 0.0
            if 0 < overlap < 1e-6 and gamma == 0:
                continue
            assert float(relation.positive[i, j]) == pytest.approx(expected, abs=1e-5)
            assert float(relation.negative[i, j]) == pytest.approx(1 - min(1, overlap / kappa), abs=1e-5)


def test_a_wider_overlap_attracts_more_and_repels_less() -> None:
    from medcl3d.core.geometry import Box, ViewSpec
    from tests.pairs.collections import make_collection

    collection = make_collection(1, 2, smallest=60)
    views = [ViewSpec(0, Box((shift, 0, 0), collection.patch_size)) for shift in (0, 2, 5, 9, 20)]
    keys = collection.keys(views, np.arange(5), np.zeros(5))
    relation = PhysicalOverlap(kappa=0.3).relate(keys[:1], keys[1:], None)
    assert (torch.diff(relation.positive[0]) < 0).all()
    assert (
        (torch.diff(relation.negative[0]) >= 0).all()
        and relation.negative[0, 0] == 0
        and relation.negative[0, -1] == 1
    )


def test_meaningless_fields_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"kappa = 1\.5 exceeds 1"):
        PhysicalOverlap(kappa=1.5)
    with pytest.raises(ConfigError, match="do not attract; raise it"):
        PhysicalOverlap(min_iou=0.0)
