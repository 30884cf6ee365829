"""Objectives of points need points that are in all views of a sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medcl3d.config.loading import parse
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.parts import Pretraining, assemble
from medcl3d.pretraining.shown_batch import shown_batch


def parts_of(store: Path, pairs: Any, objective: Any, samples: int = 4) -> Pretraining:
    config = {
        "data": {"root": str(store), "patch_size": [8, 8, 8]},
        "pairs": pairs,
        "views": "mri",
        "encoder": {"unet3d": {"channels": [4, 8], "strides": [1, 2]}},
        "objective": objective,
        "train": {"steps": 4, "samples_per_step": samples},
        "out_dir": "unused",
    }
    return assemble(parse(config, PretrainConfig, "test"))


def test_scans_of_different_frames_have_no_common_point(tiny_store: Path) -> None:
    """The visits of a patient have frames of their own, the modalities of a visit share one."""
    points = {"dense": {"num_points": 4}}
    with pytest.raises(ConfigError, match=r"pairs.longitudinal with objective.dense: .*different frames"):
        parts_of(tiny_store, "longitudinal", points)
    parts_of(tiny_store, "longitudinal", "simclr")
    assert len(shown_batch(parts_of(tiny_store, "cross_modality", points)).facts.keys)


def test_a_batch_without_a_common_point_is_refused_before_training(tiny_store: Path) -> None:
    """Crops of 8^3 voxels at independent places of scans of 32^3 rarely overlap."""
    parts = parts_of(tiny_store, {"same_patient": {"position": "free"}}, {"dense": {"num_points": 2}}, 2)
    points = parts.dataset()[0].points
    assert points is not None and not points.valid.any()
    with pytest.raises(DataError, match="no point of the first batch is in all views"):
        shown_batch(parts)
