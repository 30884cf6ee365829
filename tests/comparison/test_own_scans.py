"""The packaged comparisons for a user's own scans: their arms, and the figures in their comments."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml

from medcl3d.comparison.compare import compare
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.controls import with_controls
from medcl3d.comparison.plan.runs import plan, refuse_fields_of_runs
from medcl3d.config.loading import load
from medcl3d.config.plain import differences
from medcl3d.core.errors import ConfigError
from medcl3d.evaluation.statistics.crossed import over_replicates

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


@pytest.mark.parametrize("command", ["pretrain", "finetune", "evaluate", "compare"])
def test_small_configurations_differ_in_sizes_and_names_only(command: str) -> None:
    sizes = {"data.patch_size", "encoder.unet3d.channels", "train.steps", "train.warmup_steps"}
    names = {"out_dir", "init", "config"}
    for large in sorted((ROOT / "configs" / command).glob("mine*.yaml")):
        if large.stem.endswith("_small"):
            continue
        small = large.with_name(f"{large.stem}_small.yaml")
        both = [yaml.safe_load(path.read_text()) for path in (large, small)]
        found = {one.field for one in differences(*both) if one.where[-1] not in names}
        assert found <= sizes
        assert command == "compare" or {"data.patch_size", "encoder.unet3d.channels"} <= found


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.steps=9", ["pretrain.train.steps=9", "finetune.set.train.steps=9"]),
        (
            "data.patch_size=[8,8,8]",
            ["pretrain.data.patch_size=[8,8,8]", "evaluate.set.data.patch_size"],
        ),
        ("num_labelled=3", ["finetune.set.num_labelled=3"]),
        ("pairs=augmented_views", ["pretrain.pairs=augmented_views"]),
    ],
)
def test_an_override_of_a_field_of_runs_names_where_to_set_it(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        compare(COMPARE / "mine.yaml", [override], check=True)
    assert all(word in str(refused.value) for word in words)


def test_overrides_that_name_their_runs_reach_them() -> None:
    overrides = ["pretrain.train.steps=9", "finetune.set.train.steps=7", "replicates=1"]
    refuse_fields_of_runs([*overrides, "screened=a.yaml"])
    runs = plan(load(COMPARE / "mine_small.yaml", overrides, CompareConfig))
    assert {(run.command, run.steps) for run in runs} == {("pretrain", 9), ("finetune", 7)}


def test_retrieval_is_not_recommended_for_segmentation() -> None:
    rows = pd.read_csv(ROOT / "docs" / "results" / "small_comparisons.csv")
    sarcoma = rows[(rows["comparison"] == "sarcoma") & (rows["seed"] == 0)].set_index(["metric", "arm"])[
        "mean"
    ]
    recall = [f"{sarcoma['retrieval/recall@1', arm]:.2f}" for arm in ("untrained", "same patient")]
    text = " ".join((ROOT / "docs" / "howto" / "no_labels.md").read_text().split())
    assert f"recall@1 from {recall[0]} to {recall[1]} (one replicate)" in text
    assert "Dice is [not distinguishable]" in text
    dice = pd.read_csv(ROOT / "docs" / "results" / "sarcoma.csv").groupby(["arm", "seed"])["dice"].mean()
    gain = over_replicates((dice["same_patient"] - dice["scratch"]).to_numpy()).interval()
    assert gain.low < 0 < gain.high and gain.n == 6
    for path in (COMPARE / "mine_unlabelled.yaml", ROOT / "docs" / "howto" / "compare.md"):
        assert "not which encoder segments best" in path.read_text() and "no_labels.md" in path.read_text()
    assert "Retrieval is not shown to predict segmentation" in text
