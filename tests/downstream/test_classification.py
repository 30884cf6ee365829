"""Classification of scans from a configuration, and refused configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from medcl3d.config.field_types import Choice
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.downstream.finetune import finetune
from medcl3d.downstream.tasks.classification import Classification
from medcl3d.encoders.network import build_network
from medcl3d.preprocessing.options import prepare_options
from medcl3d.preprocessing.prepare import prepare
from medcl3d.store.store import Store


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty noisy scans.

    Those with a bright block in one half have kind 10. p0 has no kind; the last ten are test scans.
    """
    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("classified")
    rng, rows = np.random.default_rng(0), ["scan,patient,path,split,kind,age,site"]
    for i in range(30):
        voxels, kind = rng.normal(100, 10, (16, 16, 16)), "10" if i % 3 == 0 else "2"
        if kind == "10":
            voxels[2:8, 3:12, 3:12] += 60
        nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.eye(4)), raw / f"{i}.nii.gz")
        rows.append(
            f"s{i},p{i},{i}.nii.gz,{'test' if i >= 20 else 'train'},{'' if i == 0 else kind},{20 + i},A"
        )
    (raw / "manifest.csv").write_text("\n".join(rows) + "\n")
    given = prepare_options("csv", {"workers": 1})
    prepare("csv", raw, out, fields=given.fields, options=given.options)
    return out


def config_of(root: Path, out: Path, **fields: Any) -> dict[str, Any]:
    return {
        "data": {"root": str(root), "patch_size": [16, 16, 16]},
        "task": {"classification": {"target": "kind"}},
        "encoder": {"unet3d": {"channels": [4, 8, 16], "strides": [2, 2, 2]}},
        "train": {"steps": 40, "samples_per_step": 8, "log_every": 10, "precision": "float32", "lr": 3e-3},
        "out_dir": str(out),
        **fields,
    }


def run(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    path.with_suffix(".yaml").write_text(yaml.safe_dump(config))
    folder = finetune(path.with_suffix(".yaml"))
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def test_it_learns_the_classes(classified: Path, tmp_path: Path) -> None:
    found = run(tmp_path / "c", config_of(classified, tmp_path / "run"))
    area = found["metrics"]["auroc"]
    assert area["mean"] > 0.9 and area["n"] == 10
    assert set(found["metrics"]) == {
        "auroc",
        "average_precision",
        "balanced_accuracy",
        "accuracy",
        "brier",
        "calibration_error",
    }
    assert len(found["cases"]) == 10
    assert {case["class"] for case in found["cases"]} == {"2", "10"}
    assert "p0" not in found["split"]["labelled"] and len(found["split"]["labelled"]) == 19
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_outputs_that_are_not_finite_are_refused(classified: Path) -> None:
    store, task = Store.open(classified), Classification(target="kind")
    network = build_network(Choice("unet3d", {"channels": (4, 8), "strides": (1, 2)}), 1, decoder=False)
    model = task.model(network, store)
    for weights in model.parameters():
        torch.nn.init.constant_(weights, 3e38)
    scans = [scan for scan in range(len(store)) if task.has_target(store, scan)]
    with pytest.raises(DataError, match="outputs are not all finite"):
        task.evaluate(model, store, scans, (8, 8, 8), torch.device("cpu"), None, 0)


def test_labels_independent_of_voxels_are_not_learnt(classified: Path, tmp_path: Path) -> None:
    """Negative control: a column that is independent of the voxels."""
    table = Store.open(classified).collection.table
    root = tmp_path / "shuffled"
    root.mkdir()
    for name in ("prepared.json", "split.json", "store"):
        (root / name).symlink_to(classified / name)
    manifest = table.fillna("")
    manifest["kind"] = ["a" if i % 2 else "b" for i in range(len(table))]
    manifest.to_csv(root / "manifest.csv", index=False)
    area = run(tmp_path / "c", config_of(root, tmp_path / "run"))["metrics"]["auroc"]
    assert area["low"] < 0.5 < area["high"]


def test_classes_are_sorted_as_numbers_and_weighted(classified: Path) -> None:
    store, task = Store.open(classified), Classification(target="kind")
    assert task.class_names(store) == ("2", "10")
    assert not task.has_target(store, 0) and task.has_target(store, 1)
    scans = np.array([1, 2, 4, 3])
    weights = task.weights(store, scans)
    assert weights == pytest.approx([4 / (2 * 3), 4 / (2 * 1)])
    assert weights[[task.stratum(store, int(scan)) for scan in scans]].mean() == pytest.approx(1)
    assert Classification(target="kind", class_weights="none").weights(store, scans) == pytest.approx([1, 1])


@pytest.mark.parametrize(("target", "words"), [("knid", "no such column"), ("site", "1 different values")])
def test_a_column_without_classes_is_refused(
    classified: Path, tmp_path: Path, target: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        run(
            tmp_path / "c",
            config_of(classified, tmp_path / "run", task={"classification": {"target": target}}),
        )
    assert not (tmp_path / "run").exists()


def test_no_labelled_test_patient_is_refused(classified: Path, tmp_path: Path) -> None:
    root = tmp_path / "bare"
    root.mkdir()
    for name in ("prepared.json", "split.json", "store"):
        (root / name).symlink_to(classified / name)
    table = Store.open(classified).collection.table.fillna("")
    table.loc[20:, "kind"] = ""
    table.to_csv(root / "manifest.csv", index=False)
    with pytest.raises(DataError, match="no scan of the test patients has labels for classification"):
        run(tmp_path / "c", config_of(root, tmp_path / "run"))


def test_a_decoder_cannot_be_transferred(classified: Path, tmp_path: Path) -> None:
    (tmp_path / "encoder.safetensors").write_bytes(b"")
    (tmp_path / "encoder.json").write_text(
        json.dumps({"schema": 1, "decoder": True, "pretraining_patients": []})
    )
    with pytest.raises(ConfigError, match="transfer = all: this task has no decoder"):
        run(tmp_path / "c", config_of(classified, tmp_path / "run", init=str(tmp_path), transfer="all"))
