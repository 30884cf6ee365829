"""Stores and run folders of version 0.1 load, resume and predict with the same results.

`tests/frozen/v0_1` holds a simulated cohort of five patients, a pretraining of four steps stopped after the
second, a fine-tuning, and a scan with the predicted probabilities. All were written by version 0.1.0.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

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
