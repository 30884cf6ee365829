"""Distance regression over a batch: coordinates are perfect, other frames are left out, it trains."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from medcl3d.core.embeddings import Embeddings
from medcl3d.core.errors import DataError
from medcl3d.core.keys import Keys
from medcl3d.objectives.dense import point_keys
from medcl3d.objectives.distance_regression import DistanceRegression
from medcl3d.objectives.relating import Relating
from medcl3d.pretraining.pretrain import pretrain
from tests.objectives.small import Step, batch_of, relate


def model() -> DistanceRegression:
    found: DistanceRegression = Step("distance_regression", scale_mm=5.0).objective
    return found


def keys() -> Keys:
    batch = batch_of(range(3))
    assert batch.points is not None
    return point_keys(batch.main, batch.points)


def test_embeddings_that_are_positions_have_no_error() -> None:
    points = keys()
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    z = points.position_mm / 5 @ turn + 7  # any rotation and shift
    loss = model().loss({"online": Embeddings(z, points)}, Relating(relate))
    assert float(loss.value) < 1e-12 and float(loss.metrics["error_mm"]) < 1e-5


def test_the_error_is_in_mm_and_over_pairs_of_one_frame() -> None:
    points = keys()
    z = torch.randn(len(points), 6, dtype=torch.float64)
    errors = []
    for i in range(len(points)):
        for j in range(len(points)):
            if i != j and points.frame[i] == points.frame[j]:
                d = float((points.position_mm[i] - points.position_mm[j]).norm())
                errors.append((5 * float((z[i] - z[j]).norm()) - d) ** 2)
    loss = model().loss({"online": Embeddings(z, points)}, Relating(relate))
    assert float(loss.metrics["error_mm"]) == pytest.approx(np.sqrt(np.mean(errors)))
    assert float(loss.value) == pytest.approx(np.mean(errors) / 25)


def test_samples_of_one_scan_are_compared_with_each_other() -> None:
    points = keys()
    one = dataclasses.replace(points, frame=torch.zeros_like(points.frame))
    z = torch.zeros(len(points), 6, dtype=torch.float64)
    apart = torch.cdist(one.position_mm, one.position_mm)
    other = ~one.same_item(one)
    expected = apart[other].square().mean().sqrt()
    loss = model().loss({"online": Embeddings(z, one)}, Relating(relate))
    torch.testing.assert_close(loss.metrics["error_mm"], expected)


def test_invalid_points_are_left_out() -> None:
    points = keys()
    position = points.position_mm.clone()
    position[::3] = torch.nan
    z = torch.randn(len(points), 6, dtype=torch.float64)
    some = dataclasses.replace(points, position_mm=position)
    left = torch.isfinite(position).all(1)
    found, expected = (
        model().loss({"online": one}, Relating(relate)).value
        for one in (Embeddings(z, some), Embeddings(z[left], points[left]))
    )
    torch.testing.assert_close(found, expected)


def test_a_batch_without_a_distance_is_an_error() -> None:
    points = keys()
    apart = dataclasses.replace(points, frame=torch.arange(len(points)))
    z = torch.randn(len(points), 6, dtype=torch.float64)
    with pytest.raises(DataError, match="no two points of this batch share a frame"):
        model().loss({"online": Embeddings(z, apart)}, Relating(relate))


def test_a_run_reduces_its_error(tiny_store: Path, tmp_path: Path) -> None:
    config = {
        "data": {"root": str(tiny_store), "patch_size": [16, 16, 16]},
        "pairs": "overlapping_crops",
        "views": {"mri": {"flip_probability": [0, 0, 0]}},
        "encoder": {"unet3d": {"channels": [4, 8], "strides": [1, 2]}},
        "objective": "distance_regression",
        "train": {"steps": 30, "samples_per_step": 4, "log_every": 1, "lr": 3e-3, "warmup_steps": 2},
        "out_dir": str(tmp_path / "run"),
    }
    (tmp_path / "a.yaml").write_text(json.dumps(config))
    run = pretrain(tmp_path / "a.yaml")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    error = [row["error_mm"] for row in rows if "error_mm" in row]
    assert len(error) == 30 and np.isfinite(error).all()
    assert np.mean(error[-5:]) < 0.9 * np.mean(error[:5])
