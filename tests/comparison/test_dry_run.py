"""The dry run of a comparison reports errors before any run starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from medcl3d.comparison.compare import compare
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.dry_run import dry_run
from medcl3d.comparison.plan.runs import plan
from medcl3d.config.loading import load
from medcl3d.core.errors import ConfigError


@pytest.fixture
def path(tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A comparison of one pretraining with scratch on few small scans."""
    monkeypatch.chdir(tmp_path)
    data = {"root": str(tiny_store), "patch_size": [16, 16, 16]}
    encoder = {"unet3d": {"channels": [4, 8], "strides": [1, 2]}}
    train = {"steps": 2, "samples_per_step": 2, "lr": 1e-3, "warmup_steps": 1}
    pretrain = {"pairs": {"overlapping_crops": {}}, "objective": {"simclr": {}}, "views": {"mri": {}}}
    finetune = {"task": {"segmentation": {}}, "views": {"mri": {}}, "num_labelled": 2}
    for name, own in (("pretrain", pretrain), ("finetune", finetune)):
        content = {**own, "data": data, "encoder": encoder, "train": train, "out_dir": "x"}
        Path(f"{name}.yaml").write_text(yaml.safe_dump(content))
    content = {
        "out_dir": "runs", "pretrainings": {"overlap": {"config": "pretrain.yaml"}},
        "finetune": {"config": "finetune.yaml"},
        "arms": {"scratch": {}, "overlap": {"pretraining": "overlap"}}, "controls": [],
        "reference": "scratch",
    }  # fmt: skip
    Path("compare.yaml").write_text(yaml.safe_dump(content))
    return Path("compare.yaml")


def test_valid_runs_pass(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(path, check=True)
    assert not Path("runs").exists()
    assert "dry run: 3 of 3 kinds of runs (arm and cell) assembled with their" in capsys.readouterr().out


def test_too_few_test_patients_for_a_test_are_reported(path: Path) -> None:
    warning = "warning: 2 test patients can be measured; a test needs 5"
    runs = plan(load(path, (), CompareConfig))
    assert any(line.startswith(warning) for line in dry_run(runs, is_tested=True))
    assert not any("warning" in line for line in dry_run(runs))


def test_an_automatic_control_that_would_fail_does_not_block(path: Path) -> None:
    runs = plan(load(path, ["vary={num_labelled: [99]}"], CompareConfig))
    lines = dry_run(runs, {"scratch", "overlap"})
    assert sum(line.startswith("a control would fail and be left out: finetune") for line in lines) == 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["vary={num_labelled: [2, 99]}"],
            r"2 of 5 kinds of runs would fail:\n  finetune overlap, num_labelled=99, .*choose 1 to 4",
        ),
        (
            ["arms={scratch: {}, overlap: {pretraining: overlap, set: {transfer: all}}}"],
            r"finetune overlap, replicate 0: transfer = all: its pretraining 'overlap' trains no decoder, "
            "since its objective is simclr; set transfer: encoder",
        ),
        (["pretrain={data.patch_size: [15, 16, 16]}"], r"pretrain overlap, replicate 0: .*patch_size"),
        (["finetune.set={data.patch_size: [15, 16, 16]}"], r"finetune overlap, replicate 0: .*patch_size"),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_runs_that_would_fail_are_named_before_any_run_starts(
    path: Path, overrides: list[str], words: str, check: bool
) -> None:
    with pytest.raises(ConfigError, match=words):
        compare(path, overrides, check=check)
    assert not list(Path(".").rglob("status.json"))


def test_data_that_is_not_prepared_yet_is_named(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare(path, [f"pretrain={{data.root: {tmp_path}/none}}"], check=True)
    assert "none: holds no prepared scans yet, so the dry run left out its runs" in capsys.readouterr().out
