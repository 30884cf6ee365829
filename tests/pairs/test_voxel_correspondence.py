"""A physical point attracts itself; its neighbours are ignored."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from medcl3d.core.keys import Keys
from medcl3d.pairs.pair_of_crops import relate_points
from medcl3d.pairs.voxel_correspondence import VoxelCorrespondence
from tests.pairs.collections import make_collection
from tests.pairs.test_strategies import batch_of_views


def point_row(scan: int, sample: int, view: int, point: int, x: float) -> Keys:
    """One point at (x, 0, 0) mm of a scan's own frame."""
    collection = make_collection(0, 4)
    keys = batch_of_views(VoxelCorrespondence(), collection, 0, count=1)[:1]
    one = torch.ones(1, dtype=torch.int64)
    position = torch.tensor([[x, 0.0, 0.0]], dtype=torch.float64)
    return dataclasses.replace(
        keys,
        scan=one * scan,
        frame=one * scan,
        sample=one * sample,
        view=one * view,
        point=one * point,
        position_mm=position,
    )


def test_positions_determine_the_relation() -> None:
    rows = point_row(scan=0, sample=0, view=0, point=0, x=0.0)
    others = {
        "the point in the other view": (point_row(0, 0, 1, 0, 0.0), 1, 0),
        "within the tolerance, another sample": (point_row(0, 5, 0, 3, 0.9), 1, 0),
        "a near neighbour": (point_row(0, 0, 1, 1, 3.0), 0, 0),
        "far away in the same scan": (point_row(0, 0, 1, 2, 30.0), 0, 1),
        "the same numbers in another frame": (point_row(1, 7, 0, 0, 0.0), 0, 1),
        "itself": (rows, 0, 0),
    }
    cols = Keys.cat(keys for keys, _, _ in others.values())
    relation = relate_points(rows, cols, tolerance_mm=1.0, ignore_mm=5.0)
    for column, (what, (_, positive, negative)) in enumerate(others.items()):
        assert relation.positive[0, column] == positive, what
        assert relation.negative[0, column] == negative, what


def test_views_attract_within_their_sample() -> None:
    keys = batch_of_views(VoxelCorrespondence(), make_collection(0, 4), 0)
    relation = VoxelCorrespondence().relate(keys, keys, None)
    assert relation.positive.sum(1).tolist() == [1.0] * len(keys)
    assert np.allclose(relation.negative.sum(1), len(keys) - 2)
