"""Evaluation of a frozen encoder from a configuration."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medcl3d.cli import main
from medcl3d.comparison.compare import compare
from medcl3d.config.field_types import Choice
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.downstream.evaluate import evaluate
from medcl3d.downstream.probes import ScanRetrieval
from medcl3d.encoders.network import build_network
from medcl3d.pretraining.pretrain import pretrain
from medcl3d.store.store import Store
from medcl3d.training.run_folder import run_folder

ENCODER = {"unet3d": {"channels": [4, 8], "strides": [1, 2]}}
STRUCTURES = {"structure_at_centre": {"structures": 2, "crops_per_scan": 12}}


def config_of(root: Path, out: Path, **fields: Any) -> dict[str, Any]:
    data = {"root": str(root), "patch_size": [8, 8, 8]}
    return {
        "data": data,
        "encoder": ENCODER,
        "out_dir": str(out),
        "precision": "float32",
        "linear": {},
        "task": STRUCTURES,
        **fields,
    }


def write(path: Path, config: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(config))
    return path


def run(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (evaluate(write(folder / "c.yaml", config)) / "results.json").read_text()
    )
    return found


def test_all_probes_at_once_and_repeated(
    ball_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bright ball and a dark cube: even an untrained encoder distinguishes them."""
    config = config_of(
        ball_root, tmp_path / "run", knn={"k": 5}, retrieval={"same": "modality", "differ": "scan"}
    )
    with pytest.raises(DataError, match="no test scan has another with another scan of the same modality"):
        # All scans have one modality: every gallery would consist of matches.
        run(tmp_path, config | {"out_dir": str(tmp_path / "refused")})
    found = run(tmp_path, config | {"retrieval": None})
    measures = ("auroc", "average_precision", "balanced_accuracy", "accuracy", "brier", "calibration_error")
    assert set(found["metrics"]) == {f"{probe}/{name}" for probe in ("linear", "knn") for name in measures}
    assert found["metrics"]["linear/auroc"]["mean"] > 0.9
    assert found["metrics"]["linear/auroc"]["n"] == 3 and found["split"]["test"] == ["p0", "p6", "p7"]
    assert len(found["cases"]) == 2 * 3 * 12
    capsys.readouterr()
    assert run(tmp_path, config | {"retrieval": None}) == found
    assert "is done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"retrieval": {"differ": "site"}}, "retrieval: the manifest has no column 'site'"),
        (
            {"retrieval": {"differ": "session"}},
            "no test scan has another with another session of the same patient",
        ),
        ({"crop_retrieval": {"same": "side"}}, "retrieval: the manifest has no column 'side'"),
    ],
)
def test_retrieval_without_queries_is_refused_before_training(
    ball_root: Path, tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    written = write(tmp_path / "c.yaml", config_of(ball_root, tmp_path / "run", **fields))
    with pytest.raises(DataError, match=words):
        evaluate(written, check=True)


def test_replaced_weights_at_the_same_path_are_noticed(ball_root: Path, tmp_path: Path) -> None:
    for number in range(2):
        torch.manual_seed(number)
        network = build_network(Choice("unet3d", {"channels": (4, 8), "strides": (1, 2)}), 1, decoder=False)
        with run_folder(tmp_path / f"pre_{number}", {}, {}) as folder:
            facts = {"schema": 1, "architecture": ENCODER, "in_channels": 1, "decoder": False}
            folder.weights("encoder", network, {**facts, "pretraining_patients": []})
            folder.status("done", 1)
    pretraining = tmp_path / "pre_0"
    fields = config_of(ball_root, tmp_path / "run", init=str(pretraining))
    found = run(tmp_path, fields)
    assert run(tmp_path, fields) == found
    for name in ("encoder.safetensors", "encoder.json"):
        shutil.copy(tmp_path / "pre_1" / name, pretraining / name)
    with pytest.raises(ConfigError, match="started from other weights of init"):
        run(tmp_path, fields)


def test_retrieval_by_the_central_patch_reads_only_the_centre(ball_store: Store) -> None:
    shapes = ball_store.collection.shapes
    scans = list(range(len(ball_store)))
    for example in ScanRetrieval(central_patch=(8, 6, 4)).examples(ball_store, scans, (16, 16, 16)):
        (box,) = example.boxes
        before = np.array(box.start)
        after = shapes[example.scan] - before - box.size
        assert box.size == (8, 6, 4) and (before >= 0).all() and (abs(after - before) <= 1).all()
    whole = ScanRetrieval().examples(ball_store, scans, (8, 8, 8))
    assert all(len(example.boxes) > 1 for example in whole)
    large = (int(shapes[:, 0].max()) + 1, 8, 8)
    with pytest.raises(ConfigError, match=r"retrieval.central_patch = .* is larger than \d+ of \d+ scans"):
        ScanRetrieval(central_patch=large).examples(ball_store, scans, (8, 8, 8))


def test_crop_retrieval_and_landmarks_need_no_linear_probe(ball_root: Path, tmp_path: Path) -> None:
    probes = {
        "linear": None,
        "crop_retrieval": {"same": "class", "differ": "patient"},
        "landmarks": {"structures": 2, "stride_mm": 4},
    }
    found = run(tmp_path, config_of(ball_root, tmp_path / "run", **probes))
    metrics = found["metrics"]
    assert (
        metrics["crop_retrieval/average_precision"]["mean"]
        > metrics["crop_retrieval/chance_average_precision"]["mean"]
    )
    assert metrics["landmarks/error_mm"]["mean"] < metrics["landmarks/chance_error_mm"]["mean"]
    assert {case["probe"] for case in found["cases"]} == {"crop_retrieval", "landmarks"}
    with pytest.raises(ConfigError, match="crop_retrieval need a task"):
        run(tmp_path, config_of(ball_root, tmp_path / "other", **{**probes, "task": None}))


def test_a_pretraining_without_test_patients_is_accepted(ball_root: Path, tmp_path: Path) -> None:
    config = {
        "data": {"root": str(ball_root), "patch_size": [8, 8, 8]}, "pairs": "overlapping_crops",
        "views": "mri", "encoder": ENCODER,
        "objective": "simclr", "train": {"steps": 2, "samples_per_step": 2, "precision": "float32"},
        "out_dir": str(tmp_path / "pre"),
    }  # fmt: skip
    made = pretrain(write(tmp_path / "p.yaml", config))
    one = run(tmp_path, config_of(ball_root, tmp_path / "one", init=str(made), num_labelled=2))
    two = run(tmp_path, config_of(ball_root, tmp_path / "two", num_labelled=2))
    assert one["split"] == two["split"] and len(one["split"]["labelled"]) == 2
    assert [case["scan"] for case in one["cases"]] == [case["scan"] for case in two["cases"]]
    assert one["cases"] != two["cases"]
    sidecar = json.loads((made / "encoder.json").read_text())
    (made / "encoder.json").write_text(json.dumps(sidecar | {"pretraining_patients": ["p1", "p6"]}))
    with pytest.raises(DataError, match="pretraining used 1 of the test patients: p6"):
        run(tmp_path, config_of(ball_root, tmp_path / "three", init=str(made)))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"linear": None}, "no probe is configured"),
        ({"task": None}, "linear, knn and crop_retrieval need a task"),
        ({"task": {"segmentation": {}}}, "no classes of crops"),
        ({"task": {"structures_at_centre": {}}}, "did you mean 'structure_at_centre'"),
        ({"linear": {"folds": 1}}, "linear.folds"),
        ({"data": {"root": "nowhere"}}, "nowhere"),
    ],
)
def test_incompatible_configurations_are_refused_before_anything_runs(
    ball_root: Path, tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        run(tmp_path, config_of(ball_root, tmp_path / "run", **fields))
    assert words in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_arms_are_compared_by_probes(ball_root: Path, tmp_path: Path) -> None:
    write(tmp_path / "evaluate.yaml", config_of(ball_root, tmp_path / "unused", knn={}))
    arms: dict[str, Any] = {"with folds": {}, "without": {"set": {"linear.inverse_strengths": [0.1]}}}
    config = {
        "out_dir": str(tmp_path / "runs"),
        "evaluate": {"config": str(tmp_path / "evaluate.yaml")},
        "arms": arms,
    }
    path = write(
        tmp_path / "compare.yaml",
        config | {"reference": "without", "metric": "linear/balanced_accuracy", "jobs": 2},
    )
    report = compare(path)
    assert report == tmp_path / "runs" / "evaluate" / "report.html" and "with folds" in report.read_text()
    rows = pd.read_csv(tmp_path / "runs" / "evaluate" / "results.csv")
    assert list(rows["arm"]) == ["with folds", "without"] and (rows["num_cases"] == 3).all()
    moved = tmp_path / "other"
    again = compare(path, [f"out_dir={moved}"], from_runs=[tmp_path / "runs"])
    assert again == moved / "evaluate" / "report.html" and again.is_file()
    board = EventAccumulator(str(moved / "evaluate" / "tensorboard" / "0000")).Reload()
    assert [one.value for one in board.Scalars("linear/balanced_accuracy")] == [
        pytest.approx(rows["linear/balanced_accuracy"][0])
    ]
    assert b"with folds" in board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert (rows["linear/balanced_accuracy"] > 0.8).all()
    for wrong in ({"finetune": config["evaluate"]}, {"evaluate": None}):
        with pytest.raises(ConfigError, match="one of the two"):
            compare(write(tmp_path / "wrong.yaml", config | {"reference": "without"} | wrong))


def test_the_command(ball_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(write(tmp_path / "c.yaml", config_of(ball_root, tmp_path / "run"))), "--check"])
    assert (
        caught.value.code == 0 and "untrained" in capsys.readouterr().out and not (tmp_path / "run").exists()
    )


@pytest.mark.parametrize(
    ("pairs", "objective"), [("voxel_correspondence", "dense"), ("overlapping_crops", "simclr")]
)
def test_a_dry_run_of_decoded_maps_depends_on_the_objective(
    ball_root: Path, tmp_path: Path, pairs: str, objective: str
) -> None:
    pretraining = {
        "data": {"root": str(ball_root), "patch_size": [8, 8, 8]}, "pairs": pairs, "views": "mri",
        "encoder": ENCODER, "objective": objective,
        "train": {"steps": 2, "samples_per_step": 2}, "out_dir": "unused",
    }  # fmt: skip
    dense = {
        "linear": None,
        "task": None,
        "voxel_probe": {"labelled": [1]},
        "voxel_features": {"maps": "decoded"},
    }
    evaluation = write(tmp_path / "e.yaml", config_of(ball_root, tmp_path / "x", **dense))
    config = {
        "out_dir": str(tmp_path / "runs"),
        "pretrainings": {"pre": {"config": str(write(tmp_path / "pre.yaml", pretraining))}},
        "evaluate": {"config": str(evaluation)},
        "arms": {"decoder": {"pretraining": "pre"}},
        "reference": "decoder", "metric": "voxel_probe/dice", "controls": [], "stage": "screen",
        "replicates": 1,
    }  # fmt: skip
    path = write(tmp_path / "compare.yaml", config)
    if objective == "dense":
        compare(path, check=True)
        return
    with pytest.raises(
        ConfigError, match=r"voxel_features.maps = decoded: its pretraining 'pre' trains no decoder"
    ):
        compare(path, check=True)
