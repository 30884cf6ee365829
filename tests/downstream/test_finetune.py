"""Fine-tuning from a configuration: from scratch, from a pretraining, stopped, resumed, refused."""

from __future__ import annotations

import itertools
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from medcl3d.config.loading import parse
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.downstream.evaluate import evaluate
from medcl3d.downstream.finetune import FinetuneConfig, assemble, finetune, summary
from medcl3d.downstream.patch_dataset import PatchBatch
from medcl3d.downstream.tasks.segmentation import augmented
from medcl3d.pretraining.pretrain import pretrain

RATES = ("samples_per_s", "data_wait", "peak_memory_mb")
ENCODER = {"unet3d": {"channels": [4, 8], "strides": [1, 2]}}


def config_of(root: Path, out: Path, train: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {
        "data": {"root": str(root), "patch_size": [16, 16, 8], "smaller_than_patch": "pad"},
        "task": {"segmentation": {"windows": 2}},
        "encoder": ENCODER,
        "train": {
            "steps": 6,
            "samples_per_step": 2,
            "log_every": 1,
            "checkpoint_every": 2,
            "precision": "float32",
            **(train or {}),
        },
        "out_dir": str(out),
        "num_labelled": 2,
        **fields,
    }


def write(path: Path, config: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(config))
    return path


def curve(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in RATES} for row in rows]


def pretrained(root: Path, out: Path, objective: str = "dense") -> Path:
    config = {
        "data": {"root": str(root), "patch_size": [8, 8, 8]}, "pairs": "overlapping_crops", "views": "mri",
        "encoder": ENCODER,
        "objective": objective, "train": {"steps": 2, "samples_per_step": 2, "precision": "float32"},
        "out_dir": str(out),
    }  # fmt: skip
    return pretrain(write(out.with_suffix(".yaml"), config))


def test_from_scratch_to_results(ball_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "c.yaml", config_of(ball_root, tmp_path / "run"))
    folder = finetune(path)
    content = json.loads((folder / "results.json").read_text())
    assert {"dice", "hd95_mm", "dice/ball", "dice/cube"} <= set(content["metrics"])
    for metric in content["metrics"].values():
        assert set(metric) == {"mean", "low", "high", "n"} and metric["n"] in (1, 2, 3)
    assert content["metrics"]["dice"]["n"] == 3
    assert content["split"]["test"] == ["p0", "p6", "p7"] and len(content["split"]["labelled"]) == 2
    assert all(
        set(case) == {"scan", "patient", "class", "dice", "hd95_mm", "nsd_2mm", "volume_error_ml"}
        for case in content["cases"]
    )
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    assert (
        json.loads((folder / "model.json").read_text())["training_patients"] == content["split"]["labelled"]
    )
    assert "head.weight" in load_file(folder / "model.safetensors")
    assert (folder / "pictures" / "same_cases.png").is_file()
    stamp = (folder / "results.json").stat().st_mtime_ns
    capsys.readouterr()
    finetune(path)
    assert "is done" in capsys.readouterr().out and (folder / "results.json").stat().st_mtime_ns == stamp


def test_a_stopped_run_resumes_bitwise(
    ball_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finetune(write(tmp_path / "a.yaml", config_of(ball_root, tmp_path / "a")))
    path = write(tmp_path / "b.yaml", config_of(ball_root, tmp_path / "b"))

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("simulated failure")

    calls = 0

    def fails_in_step_five(batch: PatchBatch, recipe: Any) -> Any:
        nonlocal calls
        calls += 1
        return fail() if calls == 5 else augmented(batch, recipe)

    with monkeypatch.context() as patched:
        patched.setattr("medcl3d.downstream.tasks.segmentation.augmented", fails_in_step_five)
        with pytest.raises(RuntimeError, match="simulated failure"):
            finetune(path)
    assert [row["step"] for row in curve(tmp_path / "b")] == [1, 2, 3, 4]
    with monkeypatch.context() as patched:
        patched.setattr("medcl3d.downstream.finetune.measure", fail)
        with pytest.raises(RuntimeError, match="simulated failure"):
            finetune(path)
    finetune(path)
    assert curve(tmp_path / "b") == curve(whole)
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, tmp_path / "b"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    metrics = [
        json.loads((folder / "results.json").read_text())["metrics"] for folder in (whole, tmp_path / "b")
    ]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("transfer", ["encoder", "all"])
def test_from_a_pretraining(ball_root: Path, tmp_path: Path, transfer: str) -> None:
    run = pretrained(ball_root, tmp_path / "pretraining")
    weights = load_file(run / "encoder.safetensors")
    config = config_of(ball_root, tmp_path / "run", init=str(run), transfer=transfer)
    parts = assemble(parse(config, FinetuneConfig, "test"))
    scratch = assemble(parse(config | {"init": "scratch"}, FinetuneConfig, "test"))
    own, fresh = parts.model.state_dict(), scratch.model.state_dict()
    for name, value in own.items():
        key = name.removeprefix("network.")
        loaded = key.startswith("encoder.") or (transfer == "all" and key.startswith("decoder."))
        # Weights that are not loaded are the same in all arms.
        assert torch.equal(value, weights[key] if loaded else fresh[name]), name
    assert f"loaded encoder{' and decoder' if transfer == 'all' else ''}" in summary(
        parts
    ) and "from scratch" in summary(scratch)
    assert parts.labelled == scratch.labelled


def test_a_pretraining_with_test_patients_is_refused(ball_root: Path, tmp_path: Path) -> None:
    run = pretrained(ball_root, tmp_path / "pretraining", "simclr")
    sidecar = json.loads((run / "encoder.json").read_text())
    assert not set(sidecar["pretraining_patients"]) & {"p0", "p6", "p7"}
    with pytest.raises(ConfigError, match="no decoder"):
        assemble(
            parse(config_of(ball_root, tmp_path / "x", init=str(run), transfer="all"), FinetuneConfig, "test")
        )
    (run / "encoder.json").write_text(
        json.dumps(sidecar | {"pretraining_patients": ["p6", "p1"], "spacing_mm": [3.0, 3.0, 3.0]})
    )
    config = config_of(ball_root, tmp_path / "x", init=str(run))
    with pytest.raises(DataError, match="p6"):
        finetune(write(tmp_path / "c.yaml", config))
    assert not (tmp_path / "x").exists()
    (run / "encoder.json").write_text(json.dumps(sidecar | {"spacing_mm": [3.0, 3.0, 3.0]}))
    assert "warning: pretrained at [3.0, 3.0, 3.0] mm" in summary(
        assemble(parse(config, FinetuneConfig, "test"))
    )


@pytest.mark.parametrize("command", ["pretrain", "finetune", "evaluate"])
def test_a_run_does_not_resume_with_another_manifest_or_split(
    ball_root: Path, tmp_path: Path, command: str
) -> None:
    root = tmp_path / "store"
    shutil.copytree(ball_root, root)
    if command == "pretrain":
        again = partial(pretrained, root, tmp_path / "run")
    elif command == "finetune":
        path = write(tmp_path / "c.yaml", config_of(root, tmp_path / "run", {"steps": 1}))
        again = partial(finetune, path)
    else:
        config = {
            "data": {"root": str(root), "patch_size": [8, 8, 8]},
            "encoder": ENCODER,
            "landmarks": {"structures": 2, "stride_mm": 8},
        }
        again = partial(
            evaluate,
            write(tmp_path / "c.yaml", {**config, "precision": "float32", "out_dir": str(tmp_path / "run")}),
        )
    again()
    kept = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert {"data", "body", "manifest", "split", "versions", "commit", "dirty", "device", "threads"} <= set(
        kept
    )
    assert kept["kind"] == command and kept["precision"] == "float32"
    text = (root / "manifest.csv").read_text()
    (root / "manifest.csv").write_text(text.replace("scan5,p5,1,", "scan5,p5,2,"))
    with pytest.raises(
        ConfigError,
        match=r"the data changed since this run started: the column session of manifest\.csv; set another",
    ):
        again()
    (root / "manifest.csv").write_text(text)
    split = json.loads((root / "split.json").read_text())
    (root / "split.json").write_text(
        json.dumps({**split, "train": split["train"][:-1], "test": [*split["test"], split["train"][-1]]})
    )
    with pytest.raises(
        ConfigError, match=r"the data changed since this run started: split\.json; set another"
    ):
        again()
    (root / "split.json").write_text(json.dumps(split))
    again()


def test_labelled_patients_are_nested_and_have_labels(ball_root: Path, tmp_path: Path) -> None:
    drawn = []
    for num in (1, 2, 3, 4):
        parts = assemble(
            parse(config_of(ball_root, tmp_path / "x", num_labelled=num), FinetuneConfig, "test")
        )
        drawn.append(set(parts.labelled))
        names = parts.store.collection.table["patient"].to_numpy()
        assert set(names[np.asarray(parts.train.rows)]) == drawn[-1]
    assert all(a < b for a, b in itertools.pairwise(drawn)) and drawn[-1] == {"p1", "p2", "p3", "p4"}
    assert assemble(
        parse(config_of(ball_root, tmp_path / "x", num_labelled=None), FinetuneConfig, "test")
    ).labelled == tuple(sorted(drawn[-1]))
    with pytest.raises(ConfigError, match="num_labelled = 5"):
        assemble(parse(config_of(ball_root, tmp_path / "x", num_labelled=5), FinetuneConfig, "test"))


def test_invalid_configurations_are_refused_before_anything_runs(ball_root: Path, tmp_path: Path) -> None:
    for changed, message in (
        ({"data": {"root": str(ball_root), "patch_size": [16, 16, 9]}}, "encoder"),
        ({"data": {"root": str(ball_root), "patch_size": [16, 16, 16]}}, "smaller than data.patch_size"),
        ({"task": {"segmentation": {"classes": [2]}}}, "classes"),
        ({"task": {"segmentation": {"foreground_fraction": 1.5}}}, "foreground_fraction"),
        ({"task": "classify"}, "segmentation"),
        ({"transfer": "decoder"}, "transfer"),
        ({"train": {"steps": 6, "samples_per_step": 2, "grad_cache": 1}}, "train.grad_cache"),
        ({"init": str(tmp_path / "nothing")}, "file not found"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            finetune(write(tmp_path / "c.yaml", config_of(ball_root, tmp_path / "x", **changed)), check=True)
    finetune(write(tmp_path / "c.yaml", config_of(ball_root, tmp_path / "x")), check=True)
    assert not (tmp_path / "x").exists()


def test_test_scans_smaller_than_a_patch_are_not_skipped(ball_root: Path, tmp_path: Path) -> None:
    data = {"root": str(ball_root), "patch_size": [16, 16, 16], "smaller_than_patch": "skip"}
    parts = assemble(
        parse(config_of(ball_root, tmp_path / "x", data=data, num_labelled=None), FinetuneConfig, "test")
    )
    assert parts.labelled == ("p2", "p4") and len(parts.test.rows) == 3


def test_validation_patients_are_measured_during_training_without_an_effect_on_it(
    ball_root: Path, tmp_path: Path
) -> None:
    plain, measured, root = tmp_path / "plain", tmp_path / "measured", tmp_path / "store"
    shutil.copytree(ball_root, root)
    split = json.loads((root / "split.json").read_text())
    split["train"].remove("p4")
    (root / "split.json").write_text(json.dumps({**split, "validation": ["p4"]}))
    train = {"steps": 3}
    finetune(write(tmp_path / "a.yaml", config_of(root, plain, train)))
    finetune(write(tmp_path / "b.yaml", config_of(root, measured, train, validate_every=1)))
    rows = curve(measured)
    assert all("validation/dice" in row for row in rows)
    without = [{k: v for k, v in row.items() if not k.startswith("validation/")} for row in rows]
    assert without == curve(plain)
    last = config_of(root, tmp_path / "last", train, measured_on="validation")
    finetune(write(tmp_path / "c.yaml", last))
    dice = json.loads((tmp_path / "last" / "results.json").read_text())["metrics"]["dice"]["mean"]
    assert rows[-1]["validation/dice"] == pytest.approx(dice)


def test_validation_is_refused_without_validation_patients(ball_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="validate_every = 2: the split has no validation patients"):
        assemble(parse(config_of(ball_root, tmp_path, validate_every=2), FinetuneConfig, "a.yaml"))
    train = {"log_every": 2}
    with pytest.raises(ConfigError, match="validate_every = 3 is not a multiple of"):
        assemble(parse(config_of(ball_root, tmp_path, train, validate_every=3), FinetuneConfig, "a.yaml"))
