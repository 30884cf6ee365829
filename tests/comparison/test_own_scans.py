"""The packaged comparisons for a user's own scans: their arms, and the figures in their comments."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.controls import with_controls
from medcl3d.comparison.plan.runs import plan
from medcl3d.config.loading import load

ROOT = Path(__file__).parents[2]
COMPARE = ROOT / "configs" / "compare"


@pytest.mark.parametrize("name", ["mine", "mine_unlabelled"])
def test_points_and_crops_each_have_a_learning_rate_and_a_control(name: str) -> None:
    config = with_controls(load(COMPARE / f"{name}.yaml", (), CompareConfig))
    assert config.may_differ == ("train.lr",)
    planned = {run.name: run.planned for run in plan(config) if run.command == "pretrain"}
    rates = {pretraining: fields["train"]["lr"] for pretraining, fields in planned.items()}
    assert rates["dense"] == rates["augmented_views (dense)"] == 1e-3
    assert rates["crops"] == rates["augmented_views (crops)"] == 5e-4


def test_retrieval_is_not_recommended_for_segmentation() -> None:
    rows = pd.read_csv(ROOT / "docs" / "results" / "small_comparisons.csv")
    sarcoma = rows[(rows["comparison"] == "sarcoma") & (rows["seed"] == 0)].set_index(["metric", "arm"])[
        "mean"
    ]
    recall = [f"{sarcoma['retrieval/recall@1', arm]:.2f}" for arm in ("untrained", "same patient")]
    dice = [f"{sarcoma['dice', arm]:.3f}" for arm in ("scratch", "same patient")]
    for path in (COMPARE / "mine_unlabelled.yaml", ROOT / "docs" / "comparing.md"):
        text = " ".join(path.read_text().replace("#", " ").split())
        assert f"rose from {recall[0]} to {recall[1]}" in text and f"fell from {dice[0]} to {dice[1]}" in text
    assert "not a guide to segmentation" in (ROOT / "README.md").read_text()
