"""Every shipped configuration is complete, short, and loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.runs import plan
from medcl3d.config.loading import load
from medcl3d.downstream.evaluate import EvaluateConfig
from medcl3d.downstream.finetune import FinetuneConfig
from medcl3d.pretraining.config import PretrainConfig

ROOT = Path(__file__).parents[1] / "configs"
FILES = sorted(ROOT.rglob("*.yaml"))
# The keys of a file determine the command that reads it.
EVALUATIONS = dict.fromkeys(("linear", "knn", "retrieval", "voxel_probe", "voxel_matching"), EvaluateConfig)
MODELS = {"arms": CompareConfig, **EVALUATIONS, "task": FinetuneConfig, "pairs": PretrainConfig}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_it_loads_and_is_short(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT.parent)
    keys = yaml.safe_load(path.read_text())
    model = next(model for key, model in MODELS.items() if key in keys)
    load(path, (), model)
    # A comparison of all strategies has a line per pretraining and a line per arm.
    assert len(path.read_text().splitlines()) <= (60 if model is CompareConfig else 40)


@pytest.mark.parametrize("path", sorted((ROOT / "compare").rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_comparison_is_fair_and_its_arms_fit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole plan expands: every configuration of every run loads, and compared runs differ only in what
    is compared.
    """
    monkeypatch.chdir(ROOT.parent)
    config = load(path, (), CompareConfig)
    runs = plan(config, path.name)
    assert {run.name for run in runs if run.measures} == set(config.arms)
    assert {run.command for run in runs if run.measures} == {config.measured_by[0]}


def test_each_kind_has_configurations() -> None:
    assert {path.parent.name for path in FILES} >= {"pretrain", "finetune", "evaluate", "compare", "demo"}
