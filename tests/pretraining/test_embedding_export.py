"""A pretraining finishes with collapsed and with non-finite features."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from medcl3d.config.loading import parse
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.embedding_export import FEATURES, SCORES, export_embeddings
from medcl3d.pretraining.parts import assemble
from medcl3d.training.run_folder import run_folder


@pytest.mark.parametrize(
    ("weight", "scores"),
    [(0.0, {"alignment": 0.0, "uniformity": 0.0, "rankme": pytest.approx(1, abs=1e-2)}), (float("nan"), {})],
)
def test_collapsed_features_have_the_worst_scores_and_non_finite_ones_none(
    tiny_store: Path, tmp_path: Path, weight: float, scores: dict[str, float]
) -> None:
    config = {
        "data": {"root": str(tiny_store), "patch_size": [16, 16, 16], "smaller_than_patch": "pad"},
        "pairs": "overlapping_crops",
        "views": "mri",
        "encoder": {"unet3d": {"channels": [4, 8], "strides": [1, 2]}},
        "objective": "simclr",
        "train": {"steps": 5, "samples_per_step": 4, "precision": "float32"},
        "out_dir": str(tmp_path / "run"),
    }
    parts = assemble(parse(config, PretrainConfig, "test"))
    with torch.no_grad():
        for parameter in parts.learner.network.parameters():
            parameter.fill_(weight)
    with run_folder(tmp_path / "run", config, {"data": "a"}) as run:
        export_embeddings(parts, run, torch.device("cpu"))
    found = json.loads((tmp_path / "run" / SCORES).read_text())
    assert found == {"schema": 1, "crops": 20, "scores": scores}
    with np.load(tmp_path / "run" / FEATURES) as content:
        assert len(content["features"]) == 20
    warnings = tmp_path / "run" / "warnings.txt"
    assert warnings.exists() == (not scores)
    assert scores or "step 5: the encoder's features of 20 of 20 crops are not finite" in warnings.read_text()
