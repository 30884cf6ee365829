"""Crop dataset: positions of crops, and samples that depend only on seed, epoch and index."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medcl3d.config.field_types import Choice
from medcl3d.core.geometry import Box, Triple
from medcl3d.downstream.crop_dataset import CropDataset, Example, covering_crops, mean_outputs, random_crop
from medcl3d.sampling.plan import Plan
from medcl3d.store.store import Store
from medcl3d.views import VIEWS


class ByParity:
    """A task whose class is the parity of the scan's number."""

    def draw(self, store: Store, scan: int, patch_size: Triple, rng: np.random.Generator) -> tuple[Box, int]:
        return random_crop(store, scan, patch_size, rng), scan % 2

    def weigh(self, store: Store, scans: np.ndarray, targets: torch.Tensor) -> torch.Tensor:
        return torch.tensor([0.5, 2.0])[targets]


@pytest.mark.parametrize("size", [(8, 8, 8), (7, 24, 5), (32, 30, 6), (64, 64, 64)])
def test_covering_crops_cover_a_scan(ball_store: Store, size: Triple) -> None:
    for scan in range(len(ball_store)):
        shape = ball_store.collection.shapes[scan]
        seen = np.zeros(shape, dtype=int)
        boxes = covering_crops(ball_store, scan, size)
        for box in boxes:
            seen[tuple(slice(max(0, a), b) for a, b in zip(box.start, box.stop, strict=True))] += 1
            fits = np.array(size) <= shape
            assert (np.array(box.start)[fits] >= 0).all() and (np.array(box.stop) <= shape)[fits].all()
        assert seen.min() >= 1
        assert len(boxes) == np.prod(np.ceil(shape / np.array(size)))


def test_a_random_crop_stays_inside_and_reaches_every_position(ball_store: Store) -> None:
    rng = np.random.default_rng(0)
    starts = np.array([random_crop(ball_store, 0, (8, 40, 8), rng).start for _ in range(600)])
    margin = ball_store.collection.shapes[0] - np.array([8, 40, 8])
    assert (starts.min(0) == np.minimum(0, margin)).all() and (starts.max(0) == np.maximum(0, margin)).all()


def test_two_ranks_draw_the_samples_of_one_process(ball_store: Store) -> None:
    plan, recipe = Plan(np.arange(6), 4, 3), VIEWS.build(Choice("mri"))
    whole = CropDataset(ball_store, plan, ByParity(), (8, 8, 8), recipe, 5)
    halves = [CropDataset(ball_store, plan, ByParity(), (8, 8, 8), recipe, 5, rank, 2) for rank in (0, 1)]
    for step in range(5):
        one, two = whole[step], [half[step] for half in halves]
        assert torch.equal(one.voxels, torch.cat([part.voxels for part in two]))
        assert torch.equal(one.targets, torch.cat([part.targets for part in two]))
        assert all(
            torch.equal(one.parameters[key], torch.cat([part.parameters[key] for part in two]))
            for key in one.parameters
        )
        assert one.boxes == two[0].boxes + two[1].boxes
        assert torch.equal(one.weights, torch.tensor([0.5, 2.0])[one.targets])
    assert not torch.equal(whole[0].voxels, whole[3].voxels)


def test_outputs_are_averaged_over_the_boxes_of_an_example(ball_store: Store) -> None:
    boxes = covering_crops(ball_store, 0, (12, 11, 10))
    examples = [Example(0, boxes, 0), Example(1, boxes[:1], 1), Example(0, boxes[1:3], 0)]
    found = mean_outputs(
        lambda crops: crops.mean((1, 2, 3, 4))[:, None].repeat(1, 2),
        ball_store,
        examples,
        torch.device("cpu"),
        None,
    )
    for row, example in zip(found, examples, strict=True):
        expected = np.mean([ball_store.read_crop(example.scan, box).mean() for box in example.boxes])
        assert row == pytest.approx([expected, expected], abs=1e-6)
