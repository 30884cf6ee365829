"""Multi-label classification: training and probes from a configuration, and refused configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from medcl3d.config.field_types import Choice
from medcl3d.core.errors import ConfigError, DataError, UserError
from medcl3d.downstream.evaluate import evaluate
from medcl3d.downstream.finetune import finetune
from medcl3d.downstream.probes import Labelled, LinearProbe, NearestNeighbours
from medcl3d.downstream.tasks.multilabel import Multilabel
from medcl3d.preprocessing.options import prepare_options
from medcl3d.preprocessing.prepare import prepare
from medcl3d.pretraining.pretrain import pretrain
from medcl3d.sampling.plan import Plan
from medcl3d.store.splits import read_split, select_labelled
from medcl3d.store.store import Store
from medcl3d.views import VIEWS

TARGETS = ("bright", "dark")
TASK = Multilabel(targets=TARGETS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty noisy scans; each finding is a block at its own position. The last sixteen are test scans.

    No finding of p0 is known, and only one each of p1 and p2.
    """
    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("findings")
    rng, rows = np.random.default_rng(0), ["scan,patient,path,split,bright,dark,odd,all,words"]
    for i in range(40):
        bright, dark = int(i % 3 == 0), int(i % 4 < 2)
        voxels = rng.normal(100, 10, (16, 16, 16))
        voxels[2:8, 3:12, 3:12] += 60 * bright
        voxels[9:15, 3:12, 3:12] -= 60 * dark
        nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.eye(4)), raw / f"{i}.nii.gz")
        cells = {0: ",", 1: f"n/a,{dark}", 2: f"{bright}.0,"}.get(i, f"{bright},{dark}")
        rows.append(
            f"s{i},p{i},{i}.nii.gz,{'test' if i >= 24 else 'train'},{cells},"
            f"{-1 if i == 9 else i % 2},1,bright+dark"
        )
    (raw / "manifest.csv").write_text("\n".join(rows) + "\n")
    given = prepare_options("csv", {"workers": 1})
    prepare("csv", raw, out, fields=given.fields, options=given.options)
    return out


def config_of(root: Path, out: Path, **fields: Any) -> dict[str, Any]:
    return {
        "data": {"root": str(root), "patch_size": [16, 16, 16]},
        "task": {"multilabel": {"targets": list(TARGETS)}},
        "encoder": {"unet3d": {"channels": [4, 8, 16], "strides": [2, 2, 2]}},
        "out_dir": str(out),
        **fields,
    }


TRAIN = {"steps": 40, "samples_per_step": 8, "log_every": 10, "precision": "float32", "lr": 3e-3}


def results(command: Any, path: Path, config: dict[str, Any]) -> dict[str, Any]:
    path.write_text(yaml.safe_dump(config))
    found: dict[str, Any] = json.loads((command(path) / "results.json").read_text())
    return found


def test_each_finding_is_learnt(root: Path, tmp_path: Path) -> None:
    found = results(finetune, tmp_path / "c.yaml", config_of(root, tmp_path / "run", train=TRAIN))
    metrics = found["metrics"]
    for name in ("auroc", *(f"auroc/{target}" for target in TARGETS)):
        assert metrics[name]["mean"] > 0.9 and metrics[name]["n"] == 16, name
    assert {name.split("/")[0] for name in metrics} == {
        "auroc",
        "average_precision",
        "balanced_accuracy",
        "brier",
        "calibration_error",
    }
    assert len(found["cases"]) == 2 * 16 and {case["class"] for case in found["cases"]} == set(TARGETS)
    assert metrics["brier"]["mean"] == pytest.approx(
        np.mean([case["brier"] for case in found["cases"]]), abs=1e-5
    )
    assert "p0" not in found["split"]["labelled"] and {"p1", "p2"} < set(found["split"]["labelled"])


def test_findings_independent_of_voxels_are_not_learnt(root: Path, tmp_path: Path) -> None:
    """Negative control: columns that are independent of the voxels."""
    other = tmp_path / "shuffled"
    other.mkdir()
    for name in ("prepared.json", "split.json", "store"):
        (other / name).symlink_to(root / name)
    table = Store.open(root).collection.table.fillna("")
    number = np.arange(len(table))
    table["bright"], table["dark"] = number % 2, number // 12 % 2
    table.to_csv(other / "manifest.csv", index=False)
    metrics = results(finetune, tmp_path / "c.yaml", config_of(other, tmp_path / "run", train=TRAIN))[
        "metrics"
    ]
    assert metrics["auroc"]["low"] < 0.5 < metrics["auroc"]["high"]


@pytest.mark.parametrize("probe", [LinearProbe(), NearestNeighbours(k=5)])
def test_a_probe_of_a_finding_uses_the_scans_with_a_known_value(
    root: Path, probe: LinearProbe | NearestNeighbours
) -> None:
    store, rng = Store.open(root), np.random.default_rng(0)
    truth = TASK.truth(store)
    features = rng.normal(size=(40, 3))
    features[:, :2] += 6 * np.nan_to_num(truth)
    examples = TASK.examples(store, range(24, 40), (16, 16, 16))
    known = Labelled(features[1:24], truth[1:24], tuple(f"p{i}" for i in range(1, 24)))
    metrics, cases = TASK.probe_metrics(probe, known, features[24:], examples, store, 0)
    assert all(metrics[f"auroc/{target}"].mean > 0.95 for target in TARGETS) and len(cases) == 32
    blind, _ = TASK.probe_metrics(probe, known, rng.normal(size=(16, 3)), examples, store, 0)
    assert blind["auroc"].low < 0.5 < blind["auroc"].high
    none_dark = Labelled(
        known.features, np.where([False, True] & (known.targets == 1), np.nan, known.targets), known.patients
    )
    metrics, cases = TASK.probe_metrics(probe, none_dark, features[24:], examples, store, 0)
    assert metrics["auroc/dark"].mean == 0.5 and {
        case["probability"] for case in cases if case["class"] == "dark"
    } == {0}
    assert metrics["auroc/bright"].mean > 0.95


def test_probes_of_findings_from_a_configuration(root: Path, tmp_path: Path) -> None:
    config = config_of(root, tmp_path / "run", linear={}, knn={"k": 5}, precision="float32")
    whole = results(evaluate, tmp_path / "c.yaml", config)
    metrics = whole["metrics"]
    for probe in ("linear", "knn"):
        each = [metrics[f"{probe}/auroc/{target}"]["mean"] for target in TARGETS]
        assert (
            metrics[f"{probe}/auroc"]["mean"] == pytest.approx(np.mean(each))
            and metrics[f"{probe}/auroc"]["n"] == 16
        )
    few = results(
        evaluate, tmp_path / "f.yaml", config | {"num_labelled": 2, "out_dir": str(tmp_path / "few")}
    )
    assert len(few["split"]["labelled"]) == 2 and set(few["metrics"]) == set(metrics)


def test_unknown_findings_have_weight_zero_and_the_others_are_balanced(root: Path) -> None:
    store = Store.open(root)
    scans = np.arange(24)
    truth = TASK.truth(store)
    assert (
        np.isnan(truth[0]).all()
        and np.isnan(truth[1]).tolist() == [True, False]
        and np.isnan(truth[2]).tolist() == [False, True]
    )
    assert not TASK.has_target(store, 0) and TASK.has_target(store, 1)
    targets = torch.tensor(truth[scans], dtype=torch.float32)
    weights = TASK.weigh(store, scans, targets)
    assert (weights[torch.isnan(targets)] == 0).all()
    for k in range(2):
        with_it, without = (float(weights[targets[:, k] == value, k].sum()) for value in (1, 0))
        known = int(torch.isfinite(targets[:, k]).sum())
        assert with_it == pytest.approx(without) and with_it + without == pytest.approx(known)
    unweighted = Multilabel(targets=TARGETS, class_weights="none").weigh(store, scans, targets)
    assert torch.equal(unweighted, torch.isfinite(targets).float())


def test_the_loss_is_binary_cross_entropy_and_the_same_over_ranks(root: Path) -> None:
    store, plan, recipe = Store.open(root), Plan(np.arange(1, 24), 8, 0), VIEWS.build(Choice("mri"))
    whole = TASK.dataset(store, plan, (16, 16, 16), recipe, 2, 0, 1)[0]
    halves = [TASK.dataset(store, plan, (16, 16, 16), recipe, 2, rank, 2)[0] for rank in (0, 1)]
    assert torch.equal(
        torch.cat([half.targets for half in halves]).nan_to_num(9), whole.targets.nan_to_num(9)
    )
    scores = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16**3, 2))
    loss = TASK.loss(scores, whole, recipe).value
    assert loss.item() == pytest.approx(
        np.mean([TASK.loss(scores, half, recipe).value.item() for half in halves]), rel=1e-5
    )
    p, total = scores(whole.augmented(recipe)).detach().sigmoid().double(), 0.0
    for i, k in np.ndindex(8, 2):
        t = float(whole.targets[i, k])
        if np.isfinite(t):
            total -= float(whole.weights[i, k]) * np.log(float(p[i, k]) if t else 1 - float(p[i, k]))
    assert loss.item() == pytest.approx(total / 16, rel=1e-4)


def test_few_labelled_patients_include_every_finding(root: Path) -> None:
    store, split = Store.open(root), read_split(root / "split.json", [f"p{i}" for i in range(40)])
    truth = TASK.truth(store)
    strata = {f"p{i}": TASK.stratum(store, i) for i in range(1, 24)}
    assert strata["p12"] == 0 and strata["p4"] == 1 and strata["p7"] == 2  # both: the rarer; dark alone; none
    for seed in range(20):
        before: set[str] = set()
        for num in (3, 6, 12):
            drawn = set(select_labelled(split, list(strata), num, seed, strata, each_first=True))
            assert before <= drawn and (np.nansum(truth[[int(p[1:]) for p in drawn]], axis=0) >= 1).all()
            before = drawn


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (["bright", "drak"], "no column drak; it has scan, patient"),
        (["bright", "bright"], "bright is listed twice"),
        (["bright", "odd"], "'odd': '-1' of scan s9 is neither 0, 1 nor empty"),
        (["bright", "all"], "'all': all scans have it"),
        (
            ["words"],
            r"'words': 'bright\+dark' of scan s0 is neither 0, 1 nor empty; use one column per finding",
        ),
        ([], "targets"),
    ],
)
def test_columns_without_findings_are_refused(
    root: Path, tmp_path: Path, targets: list[str], words: str
) -> None:
    fields = {"task": {"multilabel": {"targets": targets}}}
    for command, more in ((finetune, {"train": TRAIN}), (evaluate, {"linear": {}})):
        with pytest.raises(ConfigError, match=words) as caught:
            results(command, tmp_path / "c.yaml", config_of(root, tmp_path / "run", **fields, **more))
        assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_constant_labels_and_probes_of_one_class_are_refused(root: Path, tmp_path: Path) -> None:
    for command, more in ((finetune, {"train": TRAIN}), (evaluate, {"knn": {}})):
        with pytest.raises(DataError, match="all labelled scans have the same known values of bright, dark"):
            results(
                command,
                tmp_path / "c.yaml",
                config_of(root, tmp_path / command.__name__, num_labelled=1, **more),
            )
    refused: list[tuple[Any, dict[str, Any], str]] = [
        (
            evaluate,
            config_of(root, tmp_path / "crops", crop_retrieval={"same": "class"}),
            "multilabel have no single class",
        ),
        (
            pretrain,
            {
                key: value
                for key, value in config_of(root, tmp_path / "pre", train=TRAIN).items()
                if key != "task"
            }
            | {"pairs": "augmented_views", "views": "mri", "objective": "simclr"}
            | {"probe": {"task": {"multilabel": {"targets": ["bright"]}}, "every": 10}},
            r"probe\.task = multilabel: has no classes",
        ),
    ]
    for command, config, words in refused:
        with pytest.raises(UserError, match=words):
            results(command, tmp_path / "c.yaml", config)
        assert not Path(config["out_dir"]).exists()


def test_the_brier_score_is_a_mean_over_patients_for_a_comparison(root: Path, tmp_path: Path) -> None:
    from medcl3d.comparison.analysis.case_values import by_patient, collect

    config = config_of(root, tmp_path / "run", train=TRAIN | {"steps": 2})
    found = results(finetune, tmp_path / "c.yaml", config)
    for metric in ("brier", "brier/dark"):
        table = collect({("a", (), 0): (found["metrics"][metric]["mean"], by_patient(found, metric))}, metric)
        assert table.of_run is not None and len(table.patients) == 16
    assert (
        collect(
            {("a", (), 0): (found["metrics"]["auroc"]["mean"], by_patient(found, "auroc"))}, "auroc"
        ).of_run
        is None
    )
    assert pd.DataFrame(found["cases"]).groupby("class")["present"].sum().to_dict() == {
        "bright": 6,
        "dark": 8,
    }
