"""Points of one region: formula, balance, supervoxels, reading of label maps, placebo, what it trains."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medcl3d.config.field_types import Choice
from medcl3d.config.loading import parse
from medcl3d.core.batch import REGION, Points
from medcl3d.core.collection import Collection
from medcl3d.core.errors import DataError
from medcl3d.core.keys import Keys
from medcl3d.objectives.dense import point_keys
from medcl3d.pairs.exclude import Exclude
from medcl3d.pairs.region_points import RegionPoints
from medcl3d.pairs.traits import region_traits_of
from medcl3d.pairs.voxel_correspondence import VoxelCorrespondence
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.parts import Pretraining, assemble
from medcl3d.sampling.augment import make_views
from medcl3d.sampling.regions import regions_at, supervoxels
from medcl3d.store.store import Store
from tests.pairs.collections import make_collection
from tests.pairs.test_strategies import batch_of_points


def points(seed: int, regions: int = 3) -> Keys:
    """Points with random regions, from -1 (unknown) and 0 (background) on; one region per point."""
    keys = batch_of_points(RegionPoints(regions="supervoxels"), make_collection(seed % 20, 6), seed)
    drawn = torch.from_numpy(np.random.default_rng(seed).integers(-1, regions + 1, (4, 5)))
    return dataclasses.replace(keys, metadata={**keys.metadata, REGION: drawn[keys.sample, keys.point]})


def of_regions(region: list[int]) -> Keys:
    """Points of several patients, far apart."""
    keys = points(0)[: len(region)]
    number = torch.arange(len(region))
    return dataclasses.replace(
        keys,
        **{name: number for name in ("sample", "scan", "frame", "patient", "point")},
        metadata={**keys.metadata, REGION: torch.tensor(region)},
    )


@pytest.mark.parametrize("kind", ["labels", "supervoxels"])
@pytest.mark.parametrize("balanced", [True, False])
@given(seed=st.integers(0, 1000))
def test_weights_follow_regions_and_correspondence(kind: str, balanced: bool, seed: int) -> None:
    strategy = RegionPoints(regions=kind, balanced=balanced, tolerance_mm=1.0)
    keys = points(seed)
    rows, cols = strategy.link(keys, keys, torch.zeros(len(keys), len(keys)))
    found = strategy.relate(rows, cols, None)
    known = VoxelCorrespondence(tolerance_mm=1.0).relate(keys, keys, None)
    region, sample = keys.metadata[REGION].tolist(), keys.sample.tolist()
    group = [(r, s if kind == "supervoxels" else 0) for r, s in zip(region, sample, strict=True)]
    labelled = [g for g in group if g[0] >= 0]
    for i, j in np.random.default_rng(seed).integers(0, len(keys), (80, 2)).tolist():
        same = group[i] == group[j] and region[i] > 0 and i != j
        p, m = float(known.positive[i, j]), float(known.negative[i, j])
        balance = 1.0
        if balanced and region[j] >= 0:
            balance = len(labelled) / (len(set(labelled)) * labelled.count(group[j]))
        assert float(found.positive[i, j]) == (1 if same else p)
        assert float(found.negative[i, j]) == pytest.approx(0 if same else m * balance, rel=1e-6)


def test_regions_of_a_batch_repel_equally() -> None:
    keys = of_regions([1, 1, 1, 1, 2, 3, 3, 0])
    rows, cols = RegionPoints().link(keys, keys, torch.zeros(8, 8))
    negative = RegionPoints().relate(rows, cols, None).negative[4]
    totals = [float(negative[keys.metadata[REGION] == region].sum()) for region in (0, 1, 3)]
    assert totals == pytest.approx([2, 2, 2]), "8 points in 4 regions"


def test_without_regions_it_is_voxel_correspondence() -> None:
    keys = points(3)
    bare = dataclasses.replace(keys, metadata={})
    unknown = dataclasses.replace(keys, metadata={REGION: torch.full((len(keys),), -1)})
    known = VoxelCorrespondence().relate(keys, keys, None)
    for one in (bare, unknown):
        rows, cols = RegionPoints().link(one, one, torch.zeros(len(one), len(one)))
        found = RegionPoints().relate(rows, cols, None)
        assert torch.equal(found.positive, known.positive)
        torch.testing.assert_close(found.negative, known.negative)


@given(seed=st.integers(0, 1000))
def test_a_tile_and_a_permuted_batch_agree_with_the_whole(seed: int) -> None:
    strategy, keys = RegionPoints(), points(seed)
    rows, cols = strategy.link(keys, keys, torch.zeros(len(keys), len(keys)))
    whole, tile = strategy.relate(rows, cols, None), strategy.relate(rows[2:5], cols[1:9], None)
    assert torch.equal(tile.positive, whole.positive[2:5, 1:9])
    assert torch.equal(tile.negative, whole.negative[2:5, 1:9])
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(keys)))
    mixed = strategy.relate(*strategy.link(keys[order], keys[order], torch.zeros(len(keys), len(keys))), None)
    torch.testing.assert_close(mixed.negative, whole.negative[order][:, order])


def assembled(root: Path, is_placebo: bool = False, **fields: object) -> Pretraining:
    given = {
        "data": {"root": str(root), "patch_size": [16, 16, 16]},
        "pairs": {"region_points": {"num_points": 20, **fields}},
        "encoder": {"unet3d": {"channels": [4, 8], "strides": [1, 2]}},
        "views": "mri",
        "objective": "dense",
        "train": {"steps": 2, "samples_per_step": 4},
        "out_dir": "unused",
        "placebo": is_placebo,
    }
    return assemble(parse(given, PretrainConfig, "cfg"))


def test_points_have_the_classes_of_their_scan_at_their_position(tiny_store: Path) -> None:
    parts = assembled(tiny_store)
    raw = parts.dataset()[0]
    assert raw.points is not None and raw.points.region is not None
    found = []
    for row, views in enumerate(np.array(raw.main.views, dtype=object).reshape(4, 2)):
        scan = int(parts.scans.rows[views[0].scan])
        inverse = np.linalg.inv(parts.store.collection.affines[scan])
        world = raw.points.position_mm[row].numpy()
        voxel = np.round(world @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
        label = parts.store.read_label(scan)
        voxel = np.clip(voxel, 0, np.array(label.shape) - 1)
        assert raw.points.region[row].tolist() == label[tuple(voxel.T)].tolist()
        found += raw.points.region[row].tolist()
    assert len(set(found)) > 2
    keys = point_keys(make_views(raw, parts.learner.recipe).main, raw.points)
    assert keys.metadata[REGION][:20].tolist() == keys.metadata[REGION][20:40].tolist(), "one per point"


def test_a_placebo_permutes_regions_within_each_sample(tiny_store: Path) -> None:
    true, false = (assembled(tiny_store, is_placebo).dataset()[0].points for is_placebo in (False, True))
    assert true is not None and false is not None and true.region is not None and false.region is not None
    assert torch.equal(true.key_mm, false.key_mm), "positions, and the same point in two views, are kept"
    assert torch.equal(true.region.sort(1).values, false.region.sort(1).values)
    assert not torch.equal(true.region, false.region)


def test_supervoxels_are_connected_regions_of_about_their_size(tiny_store: Path) -> None:
    store = Store.open(tiny_store)
    found = supervoxels(np.random.default_rng(0).normal(size=(1, 16, 16, 16)), np.array([2.0, 2, 2]), 8.0)
    assert found.min() == 1 and 30 <= found.max() <= 100, "64 cubes of 8 mm"
    two = np.zeros((1, 8, 8, 16))
    two[..., 8:] = 3.0
    halves = supervoxels(two, np.ones(3), 8.0)
    assert set(halves[..., :8].ravel()).isdisjoint(halves[..., 8:].ravel()), "they follow intensity"
    voxels = np.array([[5.0, 5, 5], [5.4, 5, 5], [14, 14, 14]])
    first, near, far = regions_at(store, 0, voxels, 6.0)
    assert first == near != far and first > 0


def test_supervoxels_train_within_samples(tiny_store: Path) -> None:
    parts = assembled(tiny_store, regions="supervoxels", supervoxel_mm=10.0)
    raw = parts.dataset()[0]
    loss = parts.learner(raw)
    loss.value.backward()
    assert torch.isfinite(loss.value) and raw.points is not None and raw.points.region is not None
    assert raw.points.region.min() >= 1


def test_a_collection_without_label_maps_is_an_error() -> None:
    collection = make_collection(0, 4)
    with pytest.raises(DataError, match=r"4 left out: it has no label map\); set regions: supervoxels"):
        RegionPoints().anchors(collection)
    table = collection.table.assign(label=["a.nii.gz", None, None, None])
    some: Collection = dataclasses.replace(collection, table=table)
    assert RegionPoints().anchors(some).notes == (
        "region_points: regions of 1 of 4 scans, those with a label map",
    )


def test_scans_without_a_label_map_have_unknown_regions(tiny_store: Path) -> None:
    store = Store.open(tiny_store)
    del store.scans[0]["label_sha256"]
    assert regions_at(store, 0, np.ones((3, 3)), None).tolist() == [-1, -1, -1]


def test_wrappers_that_relate_points_read_regions_too() -> None:
    assert region_traits_of(Exclude(inner=Choice("region_points"))) is not None
    assert region_traits_of(VoxelCorrespondence()) is None


def test_points_are_concatenated_with_their_regions() -> None:
    some = torch.zeros(1, 2, 3, dtype=torch.float64)
    one = Points(some, some, some, torch.ones(1, 2, dtype=torch.bool), torch.tensor([[3, 4]]))
    both = Points.cat([one, one])
    assert both.region is not None and both.region.tolist() == [[3, 4], [3, 4]]
    without = dataclasses.replace(one, region=None)
    assert Points.cat([without, without]).region is None


def test_descent_brings_points_of_one_region_together() -> None:
    from medcl3d.losses.contrastive_loss import ContrastiveLoss

    keys = of_regions([1, 1, 1, 2, 2, 3, 3, 3])
    relation = RegionPoints().relate(*RegionPoints().link(keys, keys, torch.zeros(8, 8)), None)
    z = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimizer = torch.optim.SGD([z], lr=1.0)
    for _ in range(150):
        optimizer.zero_grad()
        ContrastiveLoss(0.5)(z, relation.positive, relation.negative).backward()
        optimizer.step()
    unit = torch.nn.functional.normalize(z.detach(), dim=1)
    cosine, same = unit @ unit.T, keys.metadata[REGION][:, None] == keys.metadata[REGION]
    assert cosine[same].min() > 0.9 > 0.3 > cosine[~same].max()
