"""Relations by position in the body, across patients and within one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medcl3d.core.collection import Collection
from medcl3d.core.keys import Keys
from medcl3d.pairs.body_position import BodyPosition
from medcl3d.pairs.pair_of_crops import relate_points
from tests.pairs.collections import collections, make_collection
from tests.pairs.test_strategies import batch_of_views


def points_in(collection: Collection, keys: Keys, seed: int, count: int = 4) -> Keys:
    """Points near each view's centre: the same in all views of a sample, as the loader gives them."""
    rng = np.random.default_rng(seed)
    first = {int(s): i for i, s in reversed(list(enumerate(keys.sample)))}
    offset = rng.normal(scale=6.0, size=(len(first), count, 3))
    many = keys.map(lambda column: column.repeat_interleave(count, dim=0))
    position = np.concatenate([keys.center_mm[first[int(s)]].numpy() + offset[int(s)] for s in keys.sample])
    body = collection.body.place(many.scan.numpy(), position)
    point = torch.arange(count).repeat(len(keys))
    return dataclasses.replace(
        many, point=point, position_mm=torch.from_numpy(position), body=torch.from_numpy(body)
    )


@given(
    collection=collections,
    seed=st.integers(0, 1000),
    alpha=st.floats(0, 1),
    sigma=st.floats(1, 30),
    h=st.floats(1, 60),
)
def test_across_patients_weights_follow_distance_in_body_coordinates(
    collection: Collection, seed: int, alpha: float, sigma: float, h: float
) -> None:
    strategy = BodyPosition(alpha=alpha, sigma_mm=sigma, h_mm=h)
    views = batch_of_views(strategy, collection, seed)
    for keys in (views, points_in(collection, views, seed)):
        relation = strategy.relate(keys, keys, None)
        across = keys.patient[:, None] != keys.patient
        squared = ((keys.body[:, None] - keys.body) ** 2).sum(-1)
        attracted, repelled = (
            alpha * torch.exp(-squared / (2 * sigma**2)),
            1 - torch.exp(-squared / (2 * h**2)),
        )
        torch.testing.assert_close(
            relation.positive[across].double(), attracted[across], atol=1e-6, rtol=1e-5
        )
        torch.testing.assert_close(relation.negative[across].double(), repelled[across], atol=1e-6, rtol=1e-5)


@given(collection=collections, seed=st.integers(0, 1000))
def test_within_a_scan_points_relate_as_in_voxel_correspondence(collection: Collection, seed: int) -> None:
    strategy = BodyPosition(tolerance_mm=1.0, ignore_mm=4.0)
    keys = points_in(collection, batch_of_views(strategy, collection, seed), seed)
    relation, known = strategy.relate(keys, keys, None), relate_points(keys, keys, 1.0, 4.0)
    same_scan = keys.scan[:, None] == keys.scan
    assert torch.equal(relation.positive[same_scan], known.positive[same_scan])
    assert torch.equal(relation.negative[same_scan], known.negative[same_scan])
    assert (relation.positive.sum(1) > 0).all(), "a point is a positive of itself in the other view"


def test_without_attraction_it_only_removes_false_negatives() -> None:
    collection = make_collection(0, 8)
    strategy = BodyPosition(alpha=0.0, h_mm=50.0)
    assert strategy.traits.signal_weights == {"negative"}
    assert BodyPosition().traits.signal_weights == {"positive", "negative"}
    keys = batch_of_views(strategy, collection, 0)
    relation = strategy.relate(keys, keys, None)
    across = keys.patient[:, None] != keys.patient
    assert (relation.positive[across] == 0).all() and (relation.negative[across] < 1).all()


def test_noise_shifts_each_scan_as_a_whole_and_is_reproducible() -> None:
    collection = make_collection(0, 8)
    strategy = BodyPosition(alpha=1.0, sigma_mm=40.0, noise_mm=20.0)
    keys = batch_of_views(strategy, collection, 0, count=12)
    moved, still = strategy._noise(keys), dataclasses.replace(strategy, noise_mm=0.0)
    for scan in keys.scan.unique():
        assert (moved[keys.scan == scan] == moved[keys.scan == scan][0]).all()
    assert 8 < float(moved.std()) < 35
    across = keys.patient[:, None] != keys.patient
    noisy = strategy.relate(keys, keys, None).positive[across]
    assert torch.equal(noisy, strategy.relate(keys, keys, None).positive[across])
    assert not torch.allclose(noisy, still.relate(keys, keys, None).positive[across], atol=0.01)


def test_the_loader_sets_body_coordinates_of_points(tmp_path: object, tiny_store: object) -> None:
    from medcl3d.config.loading import load
    from medcl3d.pretraining.config import PretrainConfig
    from medcl3d.pretraining.parts import assemble

    path = tmp_path / "a.yaml"  # type: ignore[operator]
    path.write_text(f"""
data: {{root: {tiny_store}, patch_size: [16, 16, 16]}}
pairs: {{body_position: {{num_points: 6}}}}
views: none
encoder: {{unet3d: {{channels: [4, 8], strides: [1, 2]}}}}
objective: dense
train: {{steps: 1, samples_per_step: 4}}
out_dir: unused
""")
    parts = assemble(load(path, (), PretrainConfig))
    raw = parts.dataset()[0]
    assert raw.points is not None and raw.points.body_mm.shape == (4, 6, 3)
    scans = raw.main.keys.scan[::2].repeat_interleave(6).numpy()
    expected = parts.scans.collection.body.place(scans, raw.points.position_mm.flatten(0, 1).numpy())
    assert np.allclose(raw.points.body_mm.flatten(0, 1).numpy(), expected)
    assert parts.learner(raw).metrics["positives_per_anchor"] > 1, "points of other patients attract"


@pytest.mark.parametrize("field", ["sigma_mm", "h_mm"])
def test_units_must_be_positive(field: str) -> None:
    from medcl3d.pairs import PAIRS

    with pytest.raises(ValueError, match=field):
        PAIRS.schema("body_position").validate_python({field: 0.0})
