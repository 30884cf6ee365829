"""Runs and comparisons that start from weights of another project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from medcl3d.comparison.compare import compare
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.downstream.evaluate import evaluate
from medcl3d.downstream.finetune import finetune
from medcl3d.encoders.whole_unet3d import WholeUNet3d
from medcl3d.preprocessing.options import prepare_options
from medcl3d.preprocessing.prepare import prepare
from medcl3d.store.scan_selection import DataConfig, split_of
from medcl3d.store.store import Store

ENCODER = {"whole_unet3d": {"width": 2, "num_downs": 2, "out_channels": 2}}
UNKNOWN = "it is unknown which patients these weights were trained on; test patients may be among them"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of anatomix with random weights."""
    torch.manual_seed(3)
    network = WholeUNet3d(1, **ENCODER["whole_unet3d"])
    torch.save(network.state_dict(), tmp_path / "anatomix.pth")
    return tmp_path / "anatomix.pth"


def evaluation(store: Path, out: Path, init: Any) -> dict[str, Any]:
    return {
        "data": {"root": str(store), "patch_size": [16, 16, 16]},
        "encoder": ENCODER,
        "retrieval": {"same": "modality", "differ": "scan"},
        "init": init,
        "out_dir": str(out),
    }


def written(path: Path, content: Any) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def foreign(weights: Path, saw: Any = "unknown") -> dict[str, Any]:
    return {"weights": str(weights), "layout": "anatomix", "saw": saw}


def test_an_evaluation_says_what_is_unknown_and_differs(
    tiny_store: Path, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(tmp_path / "c.yaml", evaluation(tiny_store, tmp_path / "run", foreign(weights)))
    out = evaluate(config)
    shown = capsys.readouterr().out
    assert UNKNOWN in shown
    assert "warning: pretrained on intensities with value_range [0.0, 1.0], these scans have None" in shown
    assert "prepare them with value_range=[0.0,1.0]" in shown
    init = json.loads((out / "init.json").read_text())
    assert init["layout"] == "anatomix" and init["licence"] == "MIT" and len(init["weights_sha256"]) == 64
    untrained = evaluate(written(tmp_path / "d.yaml", evaluation(tiny_store, tmp_path / "other", "scratch")))
    assert not (untrained / "init.json").exists()
    features = [json.loads((run / "results.json").read_text())["cases"] for run in (out, untrained)]
    assert features[0] != features[1]


def test_patients_that_the_weights_saw_are_not_tested(
    tiny_store: Path, tmp_path: Path, weights: Path
) -> None:
    data = DataConfig(root=tiny_store, patch_size=(16, 16, 16))
    tested = sorted(split_of(Store.open(tiny_store), data).test)[0]
    config = evaluation(tiny_store, tmp_path / "run", foreign(weights, [tested, "stranger"]))
    with pytest.raises(DataError, match=f"pretraining used 1 of the test patients: {tested}"):
        evaluate(written(tmp_path / "c.yaml", config))
    config["init"] = foreign(weights, ["stranger"])
    out = evaluate(written(tmp_path / "c.yaml", config))
    assert json.loads((out / "init.json").read_text())["pretraining_patients"] == ["stranger"]


def test_a_fine_tuning_records_its_origin(tiny_store: Path, tmp_path: Path, weights: Path) -> None:
    content = {
        "data": {"root": str(tiny_store), "patch_size": [16, 16, 16]},
        "task": "segmentation",
        "encoder": ENCODER,
        "train": {"steps": 1, "samples_per_step": 2, "lr": 1e-3, "warmup_steps": 0},
        "init": foreign(weights),
        "out_dir": str(tmp_path / "run"),
    }
    out = finetune(written(tmp_path / "c.yaml", content))
    model = json.loads((out / "model.json").read_text())
    assert model["init"] == foreign(weights) and model["pretraining_patients"] == "unknown"
    assert json.loads((out / "init.json").read_text())["weights"] == "anatomix.pth"
    content |= {"transfer": "all", "out_dir": str(tmp_path / "all")}
    with pytest.raises(ConfigError, match="has no decoder, only a pretrained encoder; set transfer: encoder"):
        finetune(written(tmp_path / "c.yaml", content))


@pytest.mark.slow
def test_a_comparison_with_a_foreign_arm(
    tiny_store: Path, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its encoder differs from that of the other arms, and the report names what is unknown."""
    monkeypatch.chdir(tmp_path)
    own = evaluation(tiny_store, tmp_path / "x", "scratch")
    own["encoder"] = {"unet3d": {"channels": [2, 4], "strides": [1, 2]}}
    written(tmp_path / "evaluate.yaml", own)
    content: dict[str, Any] = {
        "out_dir": "runs",
        "controls": [],
        "evaluate": {"config": "evaluate.yaml"},
        "arms": {"untrained": {}, "downloaded": {"init": foreign(weights), "set": {"encoder": ENCODER}}},
        "metric": "retrieval/recall@1",
        "reference": "untrained",
        "replicates": 2,
    }
    report = compare(written(tmp_path / "compare.yaml", content), pack_to=Path("rows.jsonl.xz"))
    text = report.read_text()
    assert (
        "“downloaded” starts from weights of another project (anatomix.pth, layout anatomix, SHA-256" in text
    )
    assert f"licence: MIT): {UNKNOWN}; pretrained on intensities with percentiles" in text
    assert "weights of another project" in text  # its type in the ranking
    conclusion = json.loads((report.parent / "conclusion.json").read_text())
    assert {arm["name"]: arm["kind"] for arm in conclusion["arms"]}["downloaded"] == "foreign"
    again = compare(tmp_path / "compare.yaml", ["out_dir=again"], from_runs=[Path("rows.jsonl.xz")])
    assert f"licence: MIT): {UNKNOWN}" in again.read_text()

    content["replicates"] = 3  # the file is exchanged before another replicate
    state = torch.load(weights, weights_only=True)
    torch.save({name: one + 1 for name, one in state.items()}, weights)
    with pytest.raises(
        DataError, match=r"weights of arm downloaded \(anatomix.pth\) changed between its runs"
    ):
        compare(written(tmp_path / "compare.yaml", content))


def test_an_arm_has_one_origin(tmp_path: Path, weights: Path) -> None:
    content = {
        "out_dir": "runs",
        "controls": [],
        "evaluate": {"config": "evaluate.yaml"},
        "pretrainings": {"p": {"config": "p.yaml"}},
        "arms": {"a": {"pretraining": "p", "init": foreign(weights)}, "b": {}},
        "reference": "b",
    }
    with pytest.raises(ConfigError, match=r"arms\.a\.init: an arm starts from a pretraining or from weights"):
        compare(written(tmp_path / "compare.yaml", content), check=True)


def test_a_value_range_maps_the_limits_of_clipping(tmp_path: Path) -> None:
    options = {"num_patients": 3, "shape": [16, 16, 16], "workers": 1, "value_range": [0.0, 1.0]}
    given = prepare_options("simulated", {**options, "percentiles": [0.0, 100.0]})
    prepare("simulated", None, tmp_path / "store", fields=given.fields, options=given.options)
    store = Store.open(tmp_path / "store")
    for scan in range(len(store)):
        voxels = store.read_volume(scan)
        assert voxels.min() == 0 and voxels.max() == 1
    assert store.intensity()["value_range"] == [0.0, 1.0]
