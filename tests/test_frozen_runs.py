"""Stores and run folders of version 0.1 load, resume and predict with the same results.

`tests/frozen/v0_1` holds a simulated cohort of five patients, a pretraining of four steps stopped after the
second, a fine-tuning, a scan with the predicted probabilities, and a comparison of two arms. All were written
by version 0.1.0.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from medcl3d.comparison.compare import compare
from medcl3d.comparison.plan.preregistration import PREREGISTRATION, preregistrations
from medcl3d.downstream.finetune import finetune
from medcl3d.downstream.predict.predict import predict
from medcl3d.pretraining.pretrain import pretrain
from medcl3d.store.fingerprints import fingerprints
from medcl3d.store.store import Store

FROZEN = Path(__file__).parent / "frozen" / "v0_1"


@pytest.fixture
def frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the frozen folders, as the working directory: their configurations hold relative paths."""
    shutil.copytree(FROZEN, tmp_path / "v0_1")
    monkeypatch.chdir(tmp_path / "v0_1")
    return tmp_path / "v0_1"


def test_store_has_the_fingerprints_recorded_by_the_run(frozen: Path) -> None:
    store = Store.open(frozen / "store")
    recorded = json.loads((frozen / "pretrain" / "provenance.json").read_text())
    found = fingerprints(store)
    assert {name: found[name] for name in ("data", "body", "manifest", "split")} == {
        name: recorded[name] for name in ("data", "body", "manifest", "split")
    }


def test_pretraining_resumes_to_the_same_encoder(frozen: Path) -> None:
    expected = load_file(frozen / "pretrain" / "encoder.safetensors")
    (frozen / "pretrain" / "encoder.safetensors").unlink()
    pretrain(frozen / "pre.yaml")
    found = load_file(frozen / "pretrain" / "encoder.safetensors")
    assert list(found) == list(expected)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-6)


def test_finetuning_gives_the_same_model(frozen: Path) -> None:
    finetune(frozen / "fine.yaml", ["out_dir=again"])
    expected, found = (load_file(frozen / run / "model.safetensors") for run in ("finetune", "again"))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-6)
    results = [json.loads((frozen / run / "results.json").read_text()) for run in ("finetune", "again")]
    assert results[1]["metrics"]["dice"]["mean"] == pytest.approx(
        results[0]["metrics"]["dice"]["mean"], abs=1e-3
    )


def test_model_predicts_the_same_probabilities(frozen: Path) -> None:
    predict(frozen / "finetune", frozen / "scan.nii.gz", frozen / "labels", probabilities=True)
    made = frozen / "labels" / "scan_probabilities.nii.gz"
    expected, found = (nib.load(path).get_fdata() for path in (frozen / "probabilities.nii.gz", made))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_comparison_is_kept_completed_and_reported(frozen: Path) -> None:
    """One measurement was deleted, as if the comparison had been stopped; it is repeated."""
    before = pd.read_csv(frozen / "compare" / "results.csv")
    deleted = frozen / "compare/finetune/overlap/all/seed_1"
    expected = losses(deleted)
    shutil.rmtree(deleted)
    report = compare(frozen / "compare.yaml")
    kept = frozen / "compare/finetune/scratch/all/seed_1/status.json"
    assert kept.read_text() == (FROZEN / "compare/finetune/scratch/all/seed_1/status.json").read_text()
    np.testing.assert_allclose(losses(deleted), expected, rtol=1e-4)
    found = pd.read_csv(report.parent / "results.csv")
    shared = [name for name in before.columns if name in found.columns and name != "folder"]
    assert {"arm", "seed", "dice", "volume_error_ml", "num_cases"} <= set(shared)
    pd.testing.assert_frame_equal(found[shared], before[shared], rtol=1e-4)
    rows = preregistrations(report.parent / PREREGISTRATION)
    assert [row["finished"] for row in rows] == [0], "declared.jsonl of version 0.1 counts"
    assert "not preregistered" not in report.read_text(encoding="utf-8")


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
