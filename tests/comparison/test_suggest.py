"""`medcl3d suggest`: strategies with the messages of `pretrain --check`, and a comparison that can run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from medcl3d.cli import app
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.controls import with_controls
from medcl3d.comparison.plan.dry_run import dry_run
from medcl3d.comparison.plan.runs import plan
from medcl3d.comparison.suggest.suggestion import Suggestion, suggestion_for, trains_on_target
from medcl3d.config.loading import load
from medcl3d.core.errors import UserError
from medcl3d.pairs import PAIRS
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.parts import assemble
from medcl3d.pretraining.usable_pairs import combinators


def medcl3d(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def plain_store(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cohort without label maps, and with one scan per patient and no metadata."""
    root = tmp_path_factory.mktemp("plain") / "store"
    shutil.copytree(tiny_store, root)
    table = pd.read_csv(root / "manifest.csv", dtype=str, keep_default_na=False)
    table = table.drop_duplicates("patient")[["scan", "patient", "session", "modality", "frame", "path"]]
    table.assign(label="", split="").to_csv(root / "manifest.csv", index=False)
    for path in (root / "store").glob("*.json"):
        found = json.loads(path.read_text())
        found.pop("label_sha256", None)
        path.write_text(json.dumps(found))
    summary = json.loads((root / "prepared.json").read_text())
    (root / "prepared.json").write_text(json.dumps({**summary, "label_names": {"0": "background"}}))
    return root


@pytest.fixture(scope="module")
def found(tiny_store: Path) -> Suggestion:
    return suggestion_for(tiny_store, "mine_small")


def test_every_strategy_is_usable_or_has_the_reason_of_a_pretraining(found: Suggestion) -> None:
    names = [one.name for one in found.pairs]
    assert sorted([*names, *combinators()]) == PAIRS.names()
    usable = {one.name for one in found.usable}
    assert {"augmented_views", "overlapping_crops", "same_patient", "voxel_correspondence"} <= usable
    for one in found.pairs:
        assert bool(one.problem) == (one.name not in usable)
    (lacking, *_) = [one for one in found.pairs if one.parts is None and one.fields]
    base = Path(__file__).parents[2] / "configs" / "pretrain" / "mine_small.yaml"
    with pytest.raises(UserError) as refused:
        assemble(load(base, {**found.common, **lacking.fields}, PretrainConfig))
    assert lacking.problem in str(refused.value)


def test_the_comparison_passes_its_dry_run_and_has_controls(tiny_store: Path, tmp_path: Path) -> None:
    file = tmp_path / "compare.yaml"
    done = medcl3d("suggest", tiny_store, "--out", file, "--size", "mine_small")
    assert done.exit_code == 0, done.output
    assert "usable: " in done.output and "trains on what is measured" in done.output
    config = with_controls(load(file, [f"out_dir={tmp_path / 'runs'}", "replicates=1"], CompareConfig))
    assert {"scratch", "mae", "augmented_views", "same_patient (placebo)"} <= set(config.arms)
    assert config.stage == "screen"
    (line,) = dry_run(plan(config, str(file)))
    assert line.startswith("dry run: ")
    again = medcl3d("suggest", tiny_store, "--out", file)
    assert again.exit_code == 2 and "exists" in again.output


def test_a_strategy_that_trains_on_the_measured_labels_is_not_compared(found: Suggestion) -> None:
    assert found.measurements[0].target == "label"
    assert [one.name for one in found.usable if trains_on_target(one, found.measurements[0])] == [
        "region_points"
    ]


def test_scans_without_labels_and_metadata_have_strategies_and_no_measurement(
    plain_store: Path, tmp_path: Path
) -> None:
    done = medcl3d("suggest", plain_store)
    assert done.exit_code == 0, done.output
    assert "overlapping_crops" in done.output and "nothing to measure encoders by" in done.output
    refused = medcl3d("suggest", plain_store, "--out", tmp_path / "a.yaml")
    assert refused.exit_code == 3 and "nothing to compare encoders by" in refused.output
    assert not (tmp_path / "a.yaml").exists()
    assert medcl3d("suggest", plain_store, "--audit").exit_code == 2


def test_wrong_options_are_refused(tiny_store: Path, tmp_path: Path) -> None:
    for options, words in ((["--size", "tiny"], "mine_small"), (["--out", tmp_path / "a.txt"], ".yaml")):
        done = medcl3d("suggest", tiny_store, *options)
        assert done.exit_code == 2 and words in done.output
    assert medcl3d("suggest", tmp_path).exit_code == 3


def test_an_audit_adds_purity_to_strategies_that_need_no_encoder(
    tiny_store: Path, found: Suggestion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medcl3d.comparison.suggest.suggest.FEW_BATCHES", 1)
    few = [one for one in found.usable if one.name in ("augmented_views", "hard_negatives")]
    monkeypatch.setattr(type(found), "usable", property(lambda self: few))
    monkeypatch.setattr("medcl3d.comparison.suggest.suggest.suggestion_for", lambda root, size: found)
    done = medcl3d("suggest", tiny_store, "--audit")
    assert done.exit_code == 0, done.output
    (augmented,) = [line for line in done.output.splitlines() if line.startswith("  augmented_views")]
    (hard,) = [line for line in done.output.splitlines() if line.startswith("  hard_negatives")]
    assert "1.000" in augmented and "." not in hard
    assert "same structure" in done.output
