"""From a store to samples: the plan of batches, the geometry of crops, the places of points."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset

from medcl3d.config.loading import parse
from medcl3d.core.errors import DataError, MachineError
from medcl3d.core.geometry import Box, ViewSpec
from medcl3d.core.keys import Keys
from medcl3d.objectives.dense import point_keys
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.parts import Pretraining, assemble
from medcl3d.sampling.augment import make_views
from medcl3d.sampling.batches import batches_from
from medcl3d.sampling.crops import to_grid, view_affine
from medcl3d.sampling.plan import Plan
from medcl3d.store.scan_selection import DataConfig, select_scans
from medcl3d.store.store import Store
from tests.pairs.collections import make_collection
from tests.pretraining import test_points_of_samples as small


@given(num_anchors=st.integers(1, 40), samples_per_step=st.integers(1, 16), seed=st.integers(0, 99))
def test_an_epoch_visits_each_anchor_equally_often_and_every_batch_is_full(
    num_anchors: int, samples_per_step: int, seed: int
) -> None:
    plan = Plan(np.arange(num_anchors), samples_per_step, seed)
    batches = [plan.samples(step) for step in range(plan.steps_per_epoch)]
    assert {epoch for epoch, _ in batches} == {0} and plan.samples(plan.steps_per_epoch)[0] == 1
    assert all(len(anchors) == samples_per_step for _, anchors in batches)
    counts = np.bincount(np.concatenate([anchors for _, anchors in batches]), minlength=num_anchors)
    assert counts.max() - counts.min() <= 1


def test_epochs_differ_and_seeds_differ_and_nothing_else_does() -> None:
    plan = Plan(np.arange(50), 10, 0)
    first, again = plan.samples(3)[1], Plan(np.arange(50), 10, 0).samples(3)[1]
    assert np.array_equal(first, again)
    assert not np.array_equal(first, plan.samples(3 + plan.steps_per_epoch)[1])
    assert not np.array_equal(first, Plan(np.arange(50), 10, 1).samples(3)[1])


def test_a_resized_view_spans_its_box() -> None:
    """The outer faces of the view's grid are those of the box, whatever its number of voxels."""
    collection = make_collection(0, 1)
    box = Box((2, 3, 4), (10, 8, 6))
    affine = view_affine(collection, ViewSpec(0, box, shape=(5, 16, 6))).numpy()
    for corner, voxel in (((-0.5, -0.5, -0.5), (1.5, 2.5, 3.5)), ((4.5, 15.5, 5.5), (11.5, 10.5, 9.5))):
        assert affine[:3, :3] @ corner + affine[:3, 3] == pytest.approx(
            collection.world(np.zeros(1, int), np.array([voxel]))[0]
        )


@pytest.mark.parametrize("shape", [(5, 16, 6), (4, 3, 6), (10, 8, 6)])
def test_a_resampled_view_shows_what_lies_at_its_voxels_and_skips_none(shape: tuple[int, int, int]) -> None:
    collection, box = make_collection(0, 1), Box((2, 3, 4), (10, 8, 6))
    view = ViewSpec(0, box, shape=shape)
    world = collection.world(np.zeros(480, int), np.indices(box.size).reshape(3, -1).T + box.start)
    found = to_grid(torch.from_numpy(world.T.reshape(3, *box.size)), view)
    affine = view_affine(collection, view)
    expected = (
        torch.einsum("ij,jdhw->idhw", affine[:3, :3], torch.from_numpy(np.indices(shape)).double())
        + affine[:3, 3, None, None, None]
    )
    inside = (slice(None), *[slice(1, -1)] * 3)  # the border's value is repeated there
    torch.testing.assert_close(found[inside], expected[inside])
    fine = torch.from_numpy(np.indices((10, 8, 6)).sum(0) % 2)[
        None
    ].double()  # 0 and 1 in turn along every axis
    shrunk = to_grid(fine, ViewSpec(0, box, shape=(2, 8, 2)))
    torch.testing.assert_close(shrunk, torch.full_like(shrunk, 0.5), atol=0.05, rtol=0)


def config_of_points(store: Path, pairs: dict[str, dict[str, object]]) -> dict[str, object]:
    return {
        "data": {"root": str(store), "patch_size": [16, 16, 16]},
        "pairs": pairs,
        "views": "mri",
        "encoder": {"unet3d": {"channels": [4, 8], "strides": [1, 2]}},
        "objective": "dense",
        "train": {"steps": 4, "samples_per_step": 4},
        "out_dir": "unused",
    }


def parts_of(store: Path, **pairs: float) -> Pretraining:
    config = config_of_points(store, {"voxel_correspondence": {"num_points": 40, **pairs}})
    return assemble(parse(config, PretrainConfig, "test"))


@pytest.mark.parametrize("lean", [0.0, 0.5])
def test_points_lie_in_every_view_and_show_the_same_tissue(tiny_store: Path, lean: float) -> None:
    """Read without grey-value changes, two views show the same value at one physical point, on sheared scans
    too.
    """
    parts = parts_of(tiny_store)
    recipe = dataclasses.replace(parts.learner.recipe, intensity=None)
    sheared = parts.scans.collection.affines @ (np.eye(4) + lean * np.eye(4)[:, [2]] @ np.eye(4)[[1]]).T
    scans = dataclasses.replace(
        parts.scans, collection=dataclasses.replace(parts.scans.collection, affines=sheared)
    )
    raw = dataclasses.replace(parts.dataset(), recipe=recipe, scans=scans)[1]
    batch = make_views(raw, recipe)
    assert batch.points is not None and batch.points.valid.float().mean() > 0.5
    values = []
    for view in range(2):
        rows = (raw.keys.view == view).nonzero().flatten()
        inverse = torch.linalg.inv(batch.main.affine[rows])
        voxel = (
            torch.einsum("nij,npj->npi", inverse[:, :3, :3], batch.points.position_mm)
            + inverse[:, None, :3, 3]
        )
        valid = batch.points.valid
        assert ((voxel[valid] >= -0.5) & (voxel[valid] <= 15.5)).all()
        grid = ((2 * voxel + 1) / 16 - 1).flip(-1).float()
        read = torch.nn.functional.grid_sample(
            batch.main.voxels[rows], grid[:, :, None, None], padding_mode="border", align_corners=False
        )
        values.append(read[:, 0, :, 0, 0][valid])
    assert torch.corrcoef(torch.stack(values))[0, 1] > 0.9


@pytest.mark.parametrize(
    "pairs",
    [
        {"overlapping_crops": {"num_views": 3}},
        {"augmented_views": {"resized_crop": True}},
        {"multi_crop": {"local_size": [8, 8, 8], "num_local": 2}},
        {"voxel_correspondence": {"num_points": 40}},
    ],
    ids=lambda pairs: next(iter(pairs)),
)
def test_a_batch_is_equal_to_its_samples_made_one_by_one(
    tiny_store: Path, pairs: dict[str, dict[str, object]]
) -> None:
    """With as many ranks as samples, the batch of each rank is one sample."""
    config = config_of_points(tiny_store, pairs)
    if "voxel_correspondence" not in pairs:
        config["objective"] = "simclr"
    dataset = assemble(parse(config, PretrainConfig, "test")).dataset()
    whole = dataset[1]
    parts = [dataclasses.replace(dataset, rank=rank, world_size=4)[1] for rank in range(4)]
    for number, group in enumerate(whole.groups):
        ones = [part.groups[number] for part in parts]
        assert {one.role for one in ones} == {group.role}
        assert group.views == tuple(view for one in ones for view in one.views)
        for name in ("crops", "affine", "spacing_mm"):
            assert torch.equal(getattr(group, name), torch.cat([getattr(one, name) for one in ones])), name
        for name, value in group.parameters.items():
            assert torch.equal(value, torch.cat([one.parameters[name] for one in ones])), name
        expected = torch.cat([one.keys.matrix() for one in ones])
        torch.testing.assert_close(group.keys.matrix(), expected, rtol=0, atol=0, equal_nan=True)
        store, view = dataset.store, group.views[-1]
        crop = torch.from_numpy(store.read_crop(int(dataset.scans.rows[view.scan]), view.box))
        assert torch.equal(group.crops[-1], to_grid(crop, view))
    assert (whole.points is None) == (parts[0].points is None)
    if whole.points is not None:
        for name in ("position_mm", "key_mm", "body_mm", "valid"):
            found = getattr(whole.points, name)
            assert torch.equal(found, torch.cat([getattr(part.points, name) for part in parts])), name


def test_points_lie_in_the_box_around_the_body(tiny_store: Path) -> None:
    parts = parts_of(tiny_store)
    collection = parts.scans.collection
    boxes = collection.body_boxes.copy()
    boxes[:, 0], boxes[:, 1] = (14, 0, 0), (18, 32, 32)
    scans = dataclasses.replace(parts.scans, collection=dataclasses.replace(collection, body_boxes=boxes))
    dataset = dataclasses.replace(parts.dataset(), scans=scans)
    for raw in (dataset[step] for step in range(4)):
        assert raw.points is not None
        for sample, view in enumerate(raw.main.views[::2]):
            inverse = np.linalg.inv(collection.affines[view.scan])
            place = raw.points.position_mm[sample].numpy() @ inverse[:3, :3].T + inverse[:3, 3]
            assert ((place[:, 0] >= 13.5 - 1e-6) & (place[:, 0] <= 17.5 + 1e-6)).all()
            assert np.ptp(place[:, 1]) > 4


@pytest.mark.parametrize("shared_frame", [True, False])
def test_points_of_two_scans_need_a_common_frame(tiny_store: Path, shared_frame: bool) -> None:
    """Two scans on grids of their own: a point is in both crops and both scans, or it is none."""
    config = config_of_points(tiny_store, {"same_patient": {"position": "matched", "jitter_mm": 5}})
    parts = assemble(parse(config, PretrainConfig, "test"))
    collection = parts.scans.collection
    frame = collection.columns["patient"] if shared_frame else np.arange(len(collection))
    scans = dataclasses.replace(parts.scans, collection=collection.with_columns({"frame": frame}))
    dataset = dataclasses.replace(parts.dataset(), scans=scans)
    share = []
    for step in range(4):
        raw = dataset[step]
        batch = make_views(raw, parts.learner.recipe)
        assert batch.points is not None
        share.append(batch.points.valid.float().mean())
        for row, view in enumerate(raw.main.views):
            sample = row // 2
            place = batch.points.position_mm[sample][batch.points.valid[sample]]
            for affine, shape in (
                (batch.main.affine[row], (16, 16, 16)),
                (
                    raw.main.affine[row],
                    (16, 16, 16),
                ),  # the crop, of which a view may show more
                (collection.affines[view.scan], collection.shapes[view.scan]),
            ):
                inverse = torch.linalg.inv(torch.as_tensor(affine))
                voxel = place @ inverse[:3, :3].T + inverse[:3, 3]
                assert (
                    (voxel >= -0.5 - 1e-6) & (voxel <= torch.as_tensor(np.array(shape)) - 0.5 + 1e-6)
                ).all()
        assert len({view.scan for view in raw.main.views[:2]}) == 2
    assert np.mean(share) > 0.3 if shared_frame else max(share) == 0


def test_a_placebo_shuffles_places_and_keeps_pairs(tiny_store: Path) -> None:
    dataset = parts_of(tiny_store).dataset()
    true, shuffled = dataset[0].points, dataclasses.replace(dataset, is_placebo=True)[0].points
    assert true is not None and shuffled is not None
    assert torch.equal(true.position_mm, shuffled.position_mm) and torch.equal(true.key_mm, true.position_mm)
    assert not torch.equal(shuffled.key_mm, true.key_mm)
    assert torch.equal(shuffled.key_mm.sort(1).values, true.key_mm.sort(1).values)


def test_a_placebo_shuffles_valid_points_only(tiny_store: Path) -> None:
    """A valid point keeps the position of a shared point: the control has as many pairs."""
    pairs = {"voxel_correspondence": {"num_points": 24}}
    config = config_of_points(tiny_store, pairs)
    config["views"] = {"mri": {"affine_probability": 1, "rotation_degrees": 60, "scale": [2.0, 3.0]}}
    config["train"] = {"steps": 30, "samples_per_step": 8}
    dataset = dataclasses.replace(assemble(parse(config, PretrainConfig, "test")).dataset(), is_placebo=True)
    some = 0
    for step in range(30):
        points = dataset[step].points
        assert points is not None
        for position, key, valid in zip(points.position_mm, points.key_mm, points.valid, strict=True):
            some += 0 < int(valid.sum()) < len(valid)
            assert torch.equal(key[valid].sort(0).values, position[valid].sort(0).values)
            assert torch.equal(key[~valid], position[~valid])
    assert some, "some samples have points that are not shared"


def keys_of_steps(parts: Pretraining, steps: int) -> Iterator[Keys]:
    """The keys of some batches as the objective relates them: of points if there are any, else of views."""
    dataset = parts.dataset()
    for step in range(steps):
        batch = make_views(dataset[step], parts.learner.recipe)
        yield batch.main.keys if batch.points is None else point_keys(batch.main, batch.points)


@pytest.mark.parametrize(
    ("pairs", "objective"),
    [
        ({"body_position": {"num_points": 8, "alpha": 1.0, "sigma_mm": 15.0}}, "dense"),
        ({"body_position": {"alpha": 1.0, "sigma_mm": 15.0}}, "simclr"),
        ({"slice_position": {"thickness_mm": 8}}, "simclr"),
        ({"mirror_position": {"num_points": 8, "sigma_mm": 6.0}}, "dense"),
        ({"exclude": {"inner": "overlapping_crops", "by": "body", "nearer_mm": 10.0}}, "simclr"),
    ],
)
def test_a_placebo_of_body_positions_has_as_many_pairs_and_unrelated_ones(
    pairs: dict[str, dict[str, object]], objective: str, tiny_store: Path
) -> None:
    config = config_of_points(tiny_store, pairs) | {"objective": objective}
    config["views"] = {"mri": {"flip_probability": [0, 0, 0]}}
    config["train"] = {"steps": 60, "samples_per_step": 8}
    strategy, control = (
        assemble(parse(config | {"placebo": on}, PretrainConfig, "test")) for on in (False, True)
    )
    across: list[Tensor] = []
    for true, false in zip(keys_of_steps(strategy, 60), keys_of_steps(control, 60), strict=True):
        assert torch.equal(true.center_mm, false.center_mm) and not torch.equal(true.body, false.body)
        own, other = (strategy.strategy.relate(keys, keys, None) for keys in (true, false))
        same = (true.sample[:, None] == true.sample) & (true.point[:, None] == true.point)
        assert torch.equal(own.positive[same], other.positive[same]), "pairs of a sample stay pairs"
        others = true.patient[:, None] != true.patient
        across.append(
            torch.stack([w.double()[others] for one in (own, other) for w in (one.positive, one.negative)])
        )
    positive, negative, of_control, against_control = torch.cat(across, dim=1)
    for true_weight, weight in ((positive, of_control), (negative, against_control)):
        assert weight.mean() == pytest.approx(float(true_weight.mean()), rel=0.15)
        if true_weight.std() > 0:
            assert abs(np.corrcoef(true_weight, weight)[0, 1]) < 0.1


def test_scans_too_small_are_refused_padded_or_skipped_as_asked(tiny_store: Path) -> None:
    store = Store.open(tiny_store)
    tall = int(store.collection.shapes[:, 2].max())
    config = DataConfig(root=tiny_store, patch_size=(8, 8, tall))
    small = int((store.collection.shapes < np.array(config.patch_size)).any(1).sum())
    assert 0 < small < len(store.collection), "the case is there"
    with pytest.raises(
        DataError,
        match=rf"{small} of {len(store.collection)} scans are smaller than data.patch_size .* pad or skip",
    ):
        select_scans(store, config)
    assert len(select_scans(store, dataclasses.replace(config, smaller_than_patch="pad")).rows) == len(
        store.collection
    )
    skipped = select_scans(store, dataclasses.replace(config, smaller_than_patch="skip"))
    assert len(skipped.rows) == len(store.collection) - small and skipped.left_out.total() == small


def test_modalities_and_patients_restrict_and_say_so(tiny_store: Path) -> None:
    store = Store.open(tiny_store)
    modality = str(store.collection.table["modality"].iloc[0])
    patient = str(store.collection.table["patient"].iloc[0])
    config = DataConfig(root=tiny_store, patch_size=(8, 8, 8), modalities=(modality,))
    used = select_scans(store, config, [patient])
    assert set(used.collection.table["patient"]) == {patient} and set(used.collection.table["modality"]) == {
        modality
    }
    assert used.left_out.total() == len(store.collection) - len(used.rows)
    with pytest.raises(DataError, match="no scan is left to use"):
        select_scans(store, dataclasses.replace(config, modalities=("none of these",)))


class Dying(Dataset[int]):
    """Its second item ends the process that reads it."""

    def __init__(self, number: signal.Signals):
        self.number = number

    def __getitem__(self, index: int) -> int:
        if index == 1:
            os.kill(os.getpid(), self.number)
        return index


def test_views_are_grouped_by_the_name_of_their_role(tiny_store: Path) -> None:
    """A strategy may draw the roles of two samples in different orders, but not other ones."""
    pairs = {"multi_crop": {"num_local": 1, "local_size": [4, 4, 4]}}
    parts = small.parts_of(tiny_store, pairs, "simclr", samples=2)
    rng, collection = np.random.default_rng(0), parts.scans.collection
    first, second = (parts.strategy.sample(collection, anchor, rng) for anchor in (0, 1))
    batch = parts.dataset().collate(0, [first, second[::-1]])
    for group in batch.groups:
        assert {view.role for view in group.views} == {group.role}
    assert [len(group.views) for group in batch.groups] == [4, 2]
    with pytest.raises(DataError, match="one sample has views of global, local, another of other roles"):
        parts.dataset().collate(0, [first, second[:1]])


@pytest.mark.parametrize(
    ("number", "remedy"), [(signal.SIGBUS, "--shm-size"), (signal.SIGKILL, "train.workers")]
)
def test_a_worker_that_dies_is_said_with_what_would_do(number: signal.Signals, remedy: str) -> None:
    """A bus error is what a full /dev/shm ends a worker with."""
    with pytest.raises(MachineError, match=remedy) as caught:
        list(batches_from(Dying(number), 4, 1, 0))
    assert "\n" not in str(caught.value)


def test_a_worker_that_dies_is_an_error_of_the_next_batch() -> None:
    """Not of the code between two batches, which may handle errors of its own."""
    batches = batches_from(Dying(signal.SIGKILL), 4, 1, 0)
    assert next(batches) == 0
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)  # the worker has ended
    with pytest.raises(MachineError, match="the same command resumes"):
        next(batches)


def test_an_error_of_the_data_keeps_its_name() -> None:
    class Refusing(Dataset[int]):
        def __getitem__(self, index: int) -> int:
            raise DataError("scan 3 is bad")

    with pytest.raises(DataError, match="scan 3 is bad"):
        list(batches_from(Refusing(), 4, 0, 0))
