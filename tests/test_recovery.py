"""The recovery table follows from its rows, and its command makes both."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from medcl3d.pairs import PAIRS
from medcl3d.preprocessing.options import prepare_options
from medcl3d.preprocessing.prepare import prepare

ROOT = Path(__file__).parents[1]


@pytest.fixture
def recovery(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/strategies/recovery.py as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "strategies"))
    spec = importlib.util.spec_from_file_location("recovery", ROOT / "docs" / "strategies" / "recovery.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "recovery", module)
    spec.loader.exec_module(module)
    return module


def test_what_is_expected_is_of_strategies_and_factors(recovery: ModuleType) -> None:
    assert {name for name, _ in recovery.EXPECTED} <= set(PAIRS.names())
    assert {factor for _, factor in recovery.EXPECTED} <= set(recovery.FACTORS)
    arms = [name for name, _, _ in recovery.arms()]
    assert len(set(arms)) == len(arms) and set(PAIRS.names()) < set(arms)
    assert "same_patient (placebo)" in arms and "augmented_views (placebo)" not in arms


def test_scores_know_a_perfect_answer_and_a_constant_one(recovery: ModuleType) -> None:
    truth = np.array([[1.0, 5.0], [2.0, 1.0], [4.0, 3.0]])
    assert recovery.score("position", truth, truth) == 1
    assert recovery.score("position", np.tile(truth.mean(0), (3, 1)), truth) == pytest.approx(0)
    assert recovery.score("site", np.eye(3), np.arange(3)) == 1


def test_draws_keep_patients_whole(recovery: ModuleType) -> None:
    patients = np.array(["a", "b", "a", "c"])
    for draw in list(recovery.draws(patients))[:50]:
        counts = np.bincount(draw, minlength=4)
        assert counts[0] == counts[2] and len(draw) >= 3


def test_the_page_is_made_of_the_rows() -> None:
    rows = pd.read_csv(ROOT / "docs" / "results" / "recovery.csv")
    page = (ROOT / "docs" / "strategies" / "recovery.md").read_text(encoding="utf-8")
    for row in rows.itertuples():
        assert (
            f"{row.score:.2f} ({row.low:.2f} to {row.high:.2f})" in page.replace("-0.00", "0.00")
            or abs(row.score) < 0.01
        )
        assert row.low <= row.score <= row.high or row.factor in ("position", "age")
    assert set(PAIRS.names()) < set(rows["arm"])


@pytest.mark.slow
def test_the_command_makes_rows_and_page(
    recovery: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    given = prepare_options(
        "simulated", {"num_patients": 12, "shape": [32, 32, 32], "workers": 1, "test_fraction": 0.5}
    )
    prepare("simulated", None, data, fields=given.fields, options=given.options)
    for name, value in (
        ("DATA", data),
        ("RUNS", tmp_path / "runs"),
        ("STEPS", {"simclr": 2, "dense": 2}),
        ("RESAMPLES", 20),
    ):
        monkeypatch.setattr(recovery, name, value)
    settings = [s for s in recovery.SETTINGS if not s.startswith(("data.root", "train.warmup", "encoder"))]
    small = (
        f"data.root={data}",
        "train.warmup_steps=1",
        "encoder={unet3d: {channels: [4, 8], strides: [2, 2]}}",
        "data.patch_size=[16,16,16]",
    )
    monkeypatch.setattr(recovery, "SETTINGS", (*settings, *small))
    monkeypatch.setattr(recovery, "ROWS", tmp_path / "rows.csv")
    monkeypatch.setattr(recovery, "TABLE", tmp_path / "page.md")
    chosen = [
        arm
        for arm in recovery.arms()
        if arm[0].removesuffix(" (placebo)") in ("untrained", "augmented_views", "same_patient")
    ]
    monkeypatch.setattr(recovery, "arms", lambda: iter(chosen))
    recovery.main([])
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert list(rows["arm"].unique()) == [
        "untrained",
        "augmented_views",
        "same_patient",
        "same_patient (placebo)",
    ]
    assert set(rows["factor"]) == set(recovery.FACTORS)
    own = rows[(rows["arm"] == "same_patient") & (rows["factor"] == "patient")].iloc[0]
    control = rows[(rows["arm"] == "same_patient (placebo)") & (rows["factor"] == "patient")].iloc[0]
    assert own["control"] == "same_patient (placebo)" and own["difference"] == pytest.approx(
        own["score"] - control["score"], abs=2e-4
    )
    assert "| same_patient | patient | keeps it |" in (tmp_path / "page.md").read_text()
    before = (tmp_path / "runs" / "same_patient" / "predictions.npz").stat().st_mtime_ns
    recovery.main([])
    assert (tmp_path / "runs" / "same_patient" / "predictions.npz").stat().st_mtime_ns == before, (
        "what is there is not run again"
    )
