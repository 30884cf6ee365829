"""A report states which placebos change little of what their strategy does."""

from __future__ import annotations

from pathlib import Path

import pytest

from medcl3d.comparison.analysis.weak_placebos import weak_placebos
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.runs import plan
from medcl3d.config.loading import load

CONFIGS = Path(__file__).parents[2] / "configs" / "compare"


def test_the_placebo_of_cross_modality_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parents[1])
    file = CONFIGS / "study" / "sarcoma.yaml"
    config: CompareConfig = load(file, ["replicates=1"], CompareConfig)
    (found,) = weak_placebos(plan(config, str(file)), config)
    assert found.startswith("“cross_modality (placebo)” is a weak control: two scans of a session mostly")


def test_other_placebos_are_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parents[1])
    file = CONFIGS / "study" / "hippocampus.yaml"
    config: CompareConfig = load(file, ["replicates=1"], CompareConfig)
    assert "body_position (placebo)" in config.arms
    assert weak_placebos(plan(config, str(file)), config) == []
