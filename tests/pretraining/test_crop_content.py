"""The content of crops equals a count of their voxels, and a summary warns of padding."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medcl3d.config.loading import parse
from medcl3d.core.geometry import Box, ViewSpec
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.crop_content import content_of_crops, crop_notes, fitting_patch
from medcl3d.pretraining.parts import Pretraining, assemble


def parts_of(store: Path, patch_size: list[int]) -> Pretraining:
    config = {
        "data": {"root": str(store), "patch_size": patch_size, "smaller_than_patch": "pad"},
        "pairs": "augmented_views",
        "views": "mri",
        "encoder": {"unet3d": {"channels": [4, 8], "strides": [1, 2]}},
        "objective": "simclr",
        "train": {"steps": 4, "samples_per_step": 4},
        "out_dir": "unused",
    }
    return assemble(parse(config, PretrainConfig, "test"))


@pytest.mark.parametrize("seed", range(3))
def test_shares_equal_a_count_of_voxels(tiny_store: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    collection = parts_of(tiny_store, [16, 16, 16]).scans.collection
    boxes = collection.body_boxes.copy()
    boxes[:, 0], boxes[:, 1] = rng.integers(0, 16, (2, len(boxes), 3)) + np.array([[[0]], [[17]]])
    collection = replace(collection, body_boxes=boxes)
    padded, background, empty = [], [], []
    views = []
    for _ in range(20):
        scan, start = int(rng.integers(len(collection))), rng.integers(-20, 40, 3)
        views.append(ViewSpec(scan, Box(tuple(start.tolist()), (12, 8, 6))))
        voxels = np.indices((12, 8, 6)).reshape(3, -1).T + start
        in_scan = ((voxels >= 0) & (voxels < collection.shapes[scan])).all(1)
        in_body = ((voxels >= boxes[scan, 0]) & (voxels < boxes[scan, 1])).all(1)
        padded.append(1 - in_scan.mean())
        background.append((in_scan & ~in_body).mean())
        empty.append(in_body.mean() < 0.1)
    found = content_of_crops(collection, views)
    assert found.padded == pytest.approx(np.mean(padded))
    assert found.background == pytest.approx(np.mean(background))
    assert found.empty == pytest.approx(np.mean(empty)) and found.num_crops == 20


def test_a_summary_warns_of_padding_and_proposes_a_patch(tiny_store: Path) -> None:
    fits = crop_notes(parts_of(tiny_store, [16, 16, 16]))
    assert len(fits) == 1 and "0% of their voxels are padding" in fits[0]
    parts = parts_of(tiny_store, [16, 16, 128])
    flat = crop_notes(parts)
    length = int(np.median(parts.scans.collection.shapes[:, 2])) // 2 * 2
    assert re.match(r"crops: 7\d% of their voxels are padding", flat[0])
    assert f"data.patch_size = [16, 16, {length}] fits the scans" in flat[1] and len(flat) == 2


def test_a_fitting_patch_is_a_multiple_within_the_median_scan() -> None:
    shapes = np.array([[128, 128, 5], [128, 128, 9], [128, 128, 14]])
    assert fitting_patch(shapes, (64, 64, 64), (8, 8, 4)) == (64, 64, 8)
    assert fitting_patch(shapes, (64, 64, 64), (8, 8, 16)) == (64, 64, 16)
    assert fitting_patch(shapes, (20, 20, 4), (8, 8, 4)) == (16, 16, 4)
