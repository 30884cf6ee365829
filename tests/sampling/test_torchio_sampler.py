from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torchio as tio

from medcl3d.config.field_types import Choice
from medcl3d.config.loading import parse
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.core.geometry import Box
from medcl3d.pairs.adjacent_slices import AdjacentSlices
from medcl3d.pairs.combinators import Sum
from medcl3d.pairs.overlapping_crops import OverlappingCrops
from medcl3d.pairs.same_patient import SamePatient
from medcl3d.pairs.traits import StrategyTraits
from medcl3d.preprocessing.resample import resample
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.parts import Pretraining, assemble
from medcl3d.pretraining.pretrain import batches
from medcl3d.sampling.torchio_queue import torchio_batches
from medcl3d.sampling.torchio_sampler import PairSampler, collection_of, crop_of


def world(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]


@pytest.mark.parametrize("lean", [0.0, 1.1])
def test_a_linear_ramp_in_the_world_stays_that_ramp(lean: float) -> None:
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = [-20, 5, 60]
    affine[1, 2] = lean  # mm by which the third axis leans over the second
    slope = np.array([0.3, -0.7, 1.1])
    voxels = (world((20, 16, 12), affine) @ slope).astype(np.float32)[None]
    out, new = resample(voxels, affine, (1.0, 1.0, 1.0), label=False)
    np.testing.assert_allclose(np.linalg.norm(new[:3, :3], axis=0), 1, atol=1e-6)
    expected = world(out.shape[1:], new) @ slope
    np.testing.assert_allclose(out[0][4:-4, 4:-4, 4:-4], expected[4:-4, 4:-4, 4:-4], atol=1e-3)


def test_labels_keep_their_values_and_dtype() -> None:
    voxels = np.random.default_rng(0).choice([0, 3, 207], (1, 15, 14, 13)).astype(np.int16)
    out, _ = resample(voxels, np.diag([1.0, 1, 1, 1]), (1.7, 0.6, 1.3), label=True)
    assert out.dtype == np.int16 and set(np.unique(out)) == {0, 3, 207}


@pytest.mark.parametrize("planes", [1, 2, 3])
def test_a_thin_scan_is_smoothed_as_one_whose_further_planes_are_like_its_last(planes: int) -> None:
    affine, spacing = np.diag([1.0, 1, 1.5, 1]), (2.0, 3.0, 3.0)
    thin = np.random.default_rng(0).normal(size=(1, 20, 18, planes)).astype(np.float32)
    thick, start = np.pad(thin, [(0, 0), (0, 0), (0, 0), (6, 6)], mode="edge"), affine.copy()
    start[2, 3] = -6 * 1.5
    out, new = resample(thin, affine, spacing, label=False)
    whole, of_whole = resample(thick, start, spacing, label=False)
    assert out.shape == (1, 10, 6, 1) and new[2, 3] == (planes - 1) / 2 * 1.5
    at = (new[2, 3] - of_whole[2, 3]) / 3
    low, share = int(np.floor(at)), at % 1
    expected = (1 - share) * whole[..., low] + share * whole[..., min(low + 1, whole.shape[3] - 1)]
    np.testing.assert_allclose(out[..., 0], expected, atol=0.05 if share else 1e-6)
    labels, _ = resample((thin > 0).astype(np.int16), affine, spacing, label=True)
    assert labels.shape == out.shape and set(np.unique(labels)) <= {0, 1}


def test_a_scan_smaller_than_a_voxel_becomes_one() -> None:
    out, affine = resample(np.ones((1, 5, 6, 7), np.float32), np.eye(4), (50.0, 1.0, 1.0), label=False)
    assert out.shape == (1, 1, 6, 7) and affine[0, 3] == 2


def test_torchio_waits_until_it_is_needed() -> None:
    code = (
        "import sys, medcl3d.preprocessing.prepare, medcl3d.store.store; sys.exit('torchio' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def ramp(shape: tuple[int, int, int], affine: np.ndarray, **about: Any) -> tio.ScalarImage:
    """An image whose channels are the world coordinates of its voxels."""
    return tio.ScalarImage(
        tensor=torch.from_numpy(np.moveaxis(world(shape, affine), -1, 0)).float(), affine=affine, **about
    )


def patient() -> tio.Subject:
    """Two scans of different shapes, spacings and axes in one frame, and one of its own frame."""
    turned = np.array([[0, -2.0, 0, 30], [1.5, 0, 0, -10], [0, 0, 1, 0], [0, 0, 0, 1]])
    return tio.Subject(
        patient="7",
        first=ramp((24, 20, 18), np.eye(4), frame="a"),
        second=ramp((14, 16, 22), turned, frame="a", session="2"),
        third=ramp((12, 12, 12), np.diag([3.0, 3, 3, 1])),
    )


@pytest.mark.parametrize(
    "strategy",
    [SamePatient(), OverlappingCrops(), AdjacentSlices(thickness_mm=12), SamePatient(position="free")],
)
def test_a_queue_keeps_positives_together_and_every_view_knows_where_it_lies(strategy: Any) -> None:
    torch.manual_seed(0)
    queue = tio.Queue(
        tio.SubjectsDataset([patient()] * 3), 12, 4, PairSampler(strategy, 8), shuffle_patches=True
    )
    loader = tio.SubjectsLoader(queue, batch_size=4)
    scans = set()
    for batch in loader:
        assert batch["location"].shape == (4, 2, 6) and batch["view_0"]["data"].shape == batch["view_1"][
            "data"
        ].shape == (4, 3, 8, 8, 8)
        for i in range(4):
            names = [batch[f"view_{v}"]["scan"][i] for v in range(2)]
            scans.update(names)
            assert (names[0] == names[1]) == (not isinstance(strategy, SamePatient))
            for v in range(2):
                view, affine = batch[f"view_{v}"]["data"][i], batch[f"view_{v}"]["affine"][i]
                expected = np.moveaxis(world((8, 8, 8), affine), -1, 0)
                inside = tuple(slice(1, -1) for _ in range(3))  # resampling repeats the border's value
                np.testing.assert_allclose(
                    view.numpy()[(slice(None), *inside)], expected[(slice(None), *inside)], atol=1e-4
                )
    assert scans == {"first", "second", "third"}


def test_places_match_in_millimetres_where_scans_share_a_frame() -> None:
    torch.manual_seed(0)
    centers = []
    for item in PairSampler(SamePatient(), 6)(patient(), 40):
        if {item.view_0["scan"], item.view_1["scan"]} == {"first", "second"}:
            centers.append([item[name].affine @ [2.5, 2.5, 2.5, 1] for name in ("view_0", "view_1")])
    distance = np.linalg.norm(np.diff(centers, axis=1), axis=-1)
    assert len(distance) > 5 and np.median(distance) < 2.0


def test_a_subject_is_a_collection_of_one_patient() -> None:
    collection = collection_of(patient(), (8, 8, 8))
    assert set(collection.table["patient"]) == {"7"} and list(collection.table["session"]) == ["1", "2", "1"]
    frame = collection.columns["frame"]
    assert frame[0] == frame[1] != frame[2]
    np.testing.assert_allclose(collection.spacings[1], [1.5, 2, 1])


def test_past_the_border_stands_the_fill_and_never_zeros_of_its_own() -> None:
    image = tio.ScalarImage(tensor=torch.arange(27.0).reshape(1, 3, 3, 3) + 5, fill=[-3.0])
    crop = crop_of(image, Box((-1, 1, 0), (3, 3, 3)))
    assert (crop[:, 0] == -3).all() and (crop[:, :, 2] == -3).all()
    assert torch.equal(crop[:, 1:, :2], image.data[:, :2, 1:])
    del image["fill"]
    assert crop_of(image, Box((-9, 0, 0), (3, 3, 3))).eq(5).all()


def test_a_strategy_across_patients_is_refused_by_name() -> None:
    class Neighbours(SamePatient):
        traits: ClassVar[StrategyTraits] = StrategyTraits(crosses_patients=True)

    with pytest.raises(ConfigError, match=r"Neighbours draws scans of several patients.*loader: store"):
        PairSampler(Neighbours(), 8)
    PairSampler(Sum(parts=(Choice("same_patient"), Choice("overlapping_crops"))), 8)


def test_a_subject_with_one_scan_has_no_second() -> None:
    with pytest.raises(DataError, match="its patient has no other scan"):
        next(iter(PairSampler(SamePatient(), 8)(tio.Subject(only=ramp((9, 9, 9), np.eye(4))))))


def pretraining(
    store: Path, pairs: dict[str, Any], objective: str = "simclr", placebo: bool = False
) -> Pretraining:
    config = {
        "data": {"root": str(store), "patch_size": [16, 16, 16], "smaller_than_patch": "pad"},
        "pairs": pairs,
        "views": "mri",
        "encoder": {"unet3d": {"channels": [4, 8], "strides": [1, 2]}},
        "objective": objective,
        "train": {"steps": 6, "samples_per_step": 4},
        "out_dir": "unused",
        "loader": "torchio",
        "placebo": placebo,
    }
    return assemble(parse(config, PretrainConfig, "test"))


STRATEGIES = [
    {"voxel_correspondence": {"num_points": 8}},
    {"same_patient": {"jitter_mm": 4}},
    {"adjacent_slices": {"thickness_mm": 8}},
    {"slice_position": {"axis": 1}},
    {"sum": {"parts": ["same_patient", "overlapping_crops"]}},
    {"multi_crop": {"local_size": [8, 8, 8], "num_local": 2}},
]


def test_a_placebo_is_told_the_same_places_by_both(tiny_store: Path) -> None:
    parts = pretraining(tiny_store, {"adjacent_slices": {"thickness_mm": 8}}, "simclr", placebo=True)
    dataset = parts.dataset()
    batch, expected = next(torchio_batches(dataset, 0, 0)), dataset[0]
    assert any(view.key_box != view.box for view in expected.main.views), "slices are shuffled"
    assert torch.equal(batch.keys.matrix().nan_to_num(), expected.keys.matrix().nan_to_num())


@pytest.mark.parametrize("pairs", STRATEGIES)
@pytest.mark.parametrize("workers", [0, 2])
def test_torchio_and_the_store_give_the_same_voxels(
    tiny_store: Path, pairs: dict[str, Any], workers: int
) -> None:
    """Voxel for voxel, from a step in the middle on, with all that goes with them."""
    parts = pretraining(tiny_store, pairs, "dense" if "voxel_correspondence" in pairs else "simclr")
    dataset = parts.dataset()
    found = list(torchio_batches(dataset, workers, 2))
    assert len(found) == 4
    for step, batch in enumerate(found, 2):
        expected = dataset[step]
        for group, wanted in zip(batch.groups, expected.groups, strict=True):
            assert group.role == wanted.role
            assert torch.equal(group.crops, wanted.crops) and torch.equal(group.affine, wanted.affine)
            assert torch.equal(group.spacing_mm, wanted.spacing_mm)
            assert torch.equal(group.keys.matrix().nan_to_num(), wanted.keys.matrix().nan_to_num())
            assert all(
                torch.equal(group.parameters[name], value) for name, value in wanted.parameters.items()
            )
        if expected.points is not None:
            assert batch.points is not None and torch.equal(
                batch.points.position_mm, expected.points.position_mm
            )


def test_the_configuration_says_who_cuts(tiny_store: Path) -> None:
    parts = pretraining(tiny_store, {"same_patient": {}})
    assert batches(parts.config, parts.dataset(), 0).__name__ == "torchio_batches"
