"""A comparison over folds: each is pretrained and measured separately, and a replicate consists of all of
them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from medcl3d.comparison.analysis.analyse import analyse
from medcl3d.comparison.analysis.results import complete_replicates, gather_cases
from medcl3d.comparison.compare import compare
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.runs import plan
from medcl3d.comparison.run.launch import prepare_folder
from medcl3d.config.loading import load
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.downstream.finetune import finetune
from medcl3d.preprocessing.options import prepare_options
from medcl3d.preprocessing.prepare import prepare
from medcl3d.pretraining.pretrain import pretrain

COMMANDS = {"pretrain": pretrain, "finetune": finetune}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six simulated patients in two folds."""
    out = tmp_path_factory.mktemp("folds") / "store"
    given = prepare_options(
        "simulated", {"num_patients": 6, "shape": [16, 16, 16], "num_modalities": 1, "workers": 1, "folds": 2}
    )
    prepare("simulated", None, out, fields=given.fields, options=given.options)
    return out


@pytest.fixture
def comparison(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two arms, two replicates and two folds, with small real runs."""
    monkeypatch.chdir(tmp_path)
    shared: dict[str, Any] = {
        "data": {"root": str(root), "patch_size": [8, 8, 8], "smaller_than_patch": "pad"},
        "encoder": {"unet3d": {"channels": [4, 8], "strides": [1, 2]}},
        "train": {"steps": 2, "samples_per_step": 2, "precision": "float32"},
        "out_dir": "unused",
    }
    files = {
        "pretrain.yaml": shared | {"pairs": "overlapping_crops", "views": "mri", "objective": "simclr"},
        "finetune.yaml": shared | {"task": {"regression": {"target": "age"}}},
        "compare.yaml": {
            "out_dir": "runs",
            "pretrainings": {"overlap": {"config": "pretrain.yaml"}},
            "finetune": {"config": "finetune.yaml"},
            "arms": {"scratch": {}, "overlap": {"pretraining": "overlap"}},
            "reference": "scratch",
            "controls": [],
            "metric": "mae",
            "better": "lower",
            "folds": 2,
            "replicates": 2,
        },
    }
    for name, content in files.items():
        Path(name).write_text(yaml.safe_dump(content))
    return Path("compare.yaml")


@pytest.mark.slow
def test_a_replicate_is_all_folds_and_every_patient_tests_once(comparison: Path, root: Path) -> None:
    config = load(comparison, [], CompareConfig)
    runs = plan(config)
    assert [run.fold for run in runs] == [0] * 3 + [1] * 3 + [0] * 3 + [1] * 3
    for run in runs:
        prepare_folder(run)
        COMMANDS[run.command](run.config, run.overrides)
    report = compare(comparison).read_text()  # all is there: it only reports
    folds = [set(fold) for fold in json.loads((root / "split.json").read_text())["folds"]]
    for run in runs:
        assert run.fold is not None and run.planned["data"]["fold"] == run.fold
        name = "results.json" if run.measures else "encoder.json"
        found = json.loads((run.folder / name).read_text())
        if run.measures:
            assert (
                set(found["split"]["test"]) == folds[run.fold]
                and not set(found["split"]["labelled"]) & folds[run.fold]
            )
        else:
            assert set(found["pretraining_patients"]) == folds[1 - run.fold]
    table = pd.read_csv("runs/results.csv")
    assert len(table) == 8 and set(table["fold"]) == {0, 1}
    seeds = complete_replicates(table, config)
    assert seeds == [0, 1] and complete_replicates(table[:-1], config) == [0], (
        "a replicate without one of its folds is not complete"
    )
    analysis = analyse(table, config, gather_cases(runs, config, seeds))
    assert analysis is not None
    means = table.groupby(["arm", "seed"])["mae"].mean()
    assert analysis.values["overlap"] == pytest.approx(means["overlap"].tolist())
    difference = means["overlap"].to_numpy() - means["scratch"].to_numpy()
    interval = analysis.arm("overlap").endpoint.difference
    assert interval is not None and interval.mean == pytest.approx(difference.mean())
    assert interval.high - interval.mean == pytest.approx(
        12.7062 * difference.std(ddof=1) / np.sqrt(2), rel=1e-4
    )  # t of one df
    assert (
        analysis.num_cases is None
        and "patients train and test in turn" in report
        and "in each of 2 folds" in report
    )


def test_a_screened_patient_in_any_fold_is_refused(comparison: Path, root: Path) -> None:
    screening = yaml.safe_load(comparison.read_text()) | {
        "out_dir": "screening",
        "stage": "screen",
        "folds": None,
    }
    Path("screen.yaml").write_text(yaml.safe_dump(screening))
    of_fold_1 = json.loads((root / "split.json").read_text())["folds"][1][0]
    Path("screening/finetune/scratch").mkdir(parents=True)
    Path("screening/finetune/scratch/results.json").write_text(json.dumps({"split": {"test": [of_fold_1]}}))
    with pytest.raises(DataError, match=rf"1 test patients were used in the screening \({of_fold_1}\)"):
        compare(comparison, ["screening=screen.yaml", "first_seed=5"], check=True)
    compare(
        comparison, ["screening=screen.yaml", "first_seed=5", "folds=null"], check=True
    )  # the split itself tests fold 0


def test_an_encoder_that_saw_a_test_patient_of_another_fold_is_refused(comparison: Path) -> None:
    pretrained = pretrain(Path("pretrain.yaml"), ["data.fold=1", "out_dir=pre"])
    finetune(Path("finetune.yaml"), [f"init={pretrained}", "data.fold=1", "out_dir=fine"], check=True)
    for other in ("data.fold=0", "seed=0"):  # the split itself tests fold 0
        with pytest.raises(DataError, match="pretraining used 3 of the test patients"):
            finetune(Path("finetune.yaml"), [f"init={pretrained}", other, "out_dir=fine"], check=True)
    with pytest.raises(ConfigError, match=r"data\.fold = 2: the split has the folds 0 to 1"):
        finetune(Path("finetune.yaml"), ["data.fold=2", "out_dir=fine"], check=True)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["vary={data.fold: [0, 1]}"],
            r"vary\.data\.fold: varies measurements only, while all pretrainings would use one fold",
        ),
        (
            ["finetune.set={data.fold: 1}"],
            r"finetune\.set\.data\.fold: the comparison sets this field itself",
        ),
        (["folds=1"], "folds"),
    ],
)
def test_inconsistent_folds_are_refused(comparison: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan(load(comparison, overrides, CompareConfig))
