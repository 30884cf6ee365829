"""Features of points are interpolated at their position, and related through the crops' relation."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from medcl3d.core.batch import PairBatch, Points, ViewGroup
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation
from medcl3d.objectives.dense import Dense, point_features, point_keys
from medcl3d.pairs.overlapping_crops import OverlappingCrops
from tests.pairs.collections import make_collection


class Stub:
    """Widths of a network; the objective's constructor reads nothing else."""

    class decoder:
        out_channels = 3


def group_of(stride: int) -> tuple[ViewGroup, torch.Tensor]:
    """Two views of one sample with random affines, and a map of each whose channels are the world
    coordinates.
    """
    rng = np.random.default_rng(0)
    collection = make_collection(1, 2, patch_size=(12, 8, 16))
    views = OverlappingCrops().sample(collection, 0, rng)
    keys = collection.keys(views, np.zeros(2), np.arange(2))
    affine = torch.from_numpy(np.stack([collection.affines[0] @ random_affine(rng) for _ in range(2)]))
    shape = [n // stride for n in collection.patch_size]
    index = torch.stack(
        torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij"), -1
    )
    voxel = (index + 0.5) * stride - 0.5
    world = torch.einsum("nij,dhwj->nidhw", affine[:, :3, :3], voxel) + affine[:, :3, 3, None, None, None]
    return ViewGroup("global", torch.zeros(2, 1, *collection.patch_size), affine, keys), world


def random_affine(rng: np.random.Generator) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0] * rng.uniform(0.8, 1.2)
    affine[:3, 3] = rng.uniform(-3, 3, 3)
    return affine


def test_features_are_interpolated_at_the_point() -> None:
    """A map of world coordinates must give the point's coordinates, exactly, since trilinear interpolation is
    exact.
    """
    for stride in (1, 2, 4):
        group, world = group_of(stride)
        inner = (
            torch.rand(20, 3, dtype=torch.float64) * (torch.tensor([12.0, 8.0, 16.0]) - stride)
            + (stride - 1) / 2
        )
        position = inner @ group.affine[0, :3, :3].T + group.affine[0, :3, 3]
        points = Points(position[None], position[None], position[None], torch.ones(1, 20, dtype=torch.bool))
        features = point_features(world.float(), group, points)
        torch.testing.assert_close(features[0].double(), position, atol=2e-3, rtol=1e-4)


def keys_in_two_samples(same_scan: bool) -> tuple[Dense, OverlappingCrops, PairBatch]:
    collection = make_collection(2, 2, smallest=60)
    strategy = OverlappingCrops(min_iou=0.4, max_iou=0.9)
    rng = np.random.default_rng(0)
    views = [*strategy.sample(collection, 0, rng), *strategy.sample(collection, 0 if same_scan else 1, rng)]
    keys = collection.keys(views, np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    group = ViewGroup(
        "global", torch.zeros(4, 1, 12, 10, 8), torch.eye(4, dtype=torch.float64).repeat(4, 1, 1), keys
    )
    position = torch.tensor(
        [[[0.0, 0, 0], [2, 0, 0], [40, 0, 0]], [[500.0, 0, 0], [600, 0, 0], [700, 0, 0]]], dtype=torch.float64
    )
    return (
        Dense(Stub(), tolerance_mm=0.5, ignore_mm=5.0),
        strategy,
        PairBatch((group,), Points(position, position, position, torch.ones(2, 3, dtype=torch.bool))),
    )  # type: ignore[arg-type]


def test_the_gate_keeps_the_same_point_and_ignores_neighbours() -> None:
    objective, strategy, batch = keys_in_two_samples(same_scan=False)
    keys = point_keys(batch.main, batch.points)  # type: ignore[arg-type]
    relation = objective.gate(strategy.relate)(keys, keys, None)
    same_point = (
        (keys.sample[:, None] == keys.sample)
        & (keys.point[:, None] == keys.point)
        & (keys.view[:, None] != keys.view)
    )
    assert torch.equal(relation.positive > 0, same_point)
    near = (keys.sample[:, None] == keys.sample) & (
        (keys.position_mm[:, None] - keys.position_mm).norm(dim=-1) < 5
    )
    assert (relation.negative[near] == 0).all()
    assert (relation.negative[~near] == 1).all()


def test_points_of_attracting_crops_repel_within_a_frame_only() -> None:
    """Of crops that attract across frames, it is not known which points correspond."""
    objective, _, batch = keys_in_two_samples(same_scan=False)
    keys = point_keys(batch.main, batch.points)  # type: ignore[arg-type]

    def relate(rows: Keys, cols: Keys, similarity: torch.Tensor | None) -> Relation:
        attract = torch.full((len(rows), len(cols)), 0.9)
        return Relation(attract, 1 - attract)

    relation = objective.gate(relate)(keys, keys, None)
    across = keys.sample[:, None] != keys.sample
    torch.testing.assert_close(relation.negative[across], torch.full_like(relation.negative[across], 0.1))
    assert (relation.positive[across] == 0).all()
    views = ~across & (keys.view[:, None] != keys.view) & (relation.positive == 0)
    far = (keys.position_mm[:, None] - keys.position_mm).norm(dim=-1) > 5
    assert (views & far).any() and (relation.negative[views & far] == 1).all(), "whatever P of the crops is"


def test_points_of_ignored_crops_are_ignored() -> None:
    objective, strategy, batch = keys_in_two_samples(same_scan=True)
    keys = point_keys(batch.main, batch.points)  # type: ignore[arg-type]
    crops = strategy.relate(batch.main.keys, batch.main.keys, None)
    ignored = (crops.positive == 0) & (crops.negative == 0) & ~torch.eye(4, dtype=torch.bool)
    assert ignored.any(), "the case occurs"
    relation = objective.gate(strategy.relate)(keys, keys, None)
    ignored_points = ignored.repeat_interleave(3, 0).repeat_interleave(3, 1)
    assert (relation.positive[ignored_points] == 0).all() and (relation.negative[ignored_points] == 0).all()


def test_invalid_points_have_no_position() -> None:
    _, _, batch = keys_in_two_samples(same_scan=False)
    assert batch.points is not None
    points = dataclasses.replace(batch.points, valid=torch.tensor([[True, False, True], [True, True, True]]))
    keys = point_keys(batch.main, points)
    assert torch.isnan(keys.position_mm).any(1).nonzero().flatten().tolist() == [1, 4]
