"""Regression of a column from a configuration, and refused configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from medcl3d.core.errors import ConfigError
from medcl3d.downstream.tasks.regression import Regression
from medcl3d.preprocessing.options import prepare_options
from medcl3d.preprocessing.prepare import prepare
from medcl3d.store.store import Store
from tests.downstream.test_classification import config_of, run


@pytest.fixture(scope="module")
def aged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty noisy scans whose bright block grows with age; s0 has no age, `noise` is independent.

    The last 14 are test scans.
    """
    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("aged")
    rng, rows = np.random.default_rng(0), ["scan,patient,path,split,age,noise,site,same"]
    for i in range(40):
        age = 30 + 50 * rng.uniform()
        voxels = rng.normal(100, 10, (16, 16, 16))
        voxels[2 : 2 + round((age - 25) / 4), 2:12, 2:12] += 60
        nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.eye(4)), raw / f"{i}.nii.gz")
        side = "test" if i >= 26 else "train"
        rows.append(f"s{i},p{i},{i}.nii.gz,{side},{'' if i == 0 else round(age, 2)},{rng.normal():.3f},A,7")
    (raw / "manifest.csv").write_text("\n".join(rows) + "\n")
    given = prepare_options("csv", {"workers": 1})
    prepare("csv", raw, out, fields=given.fields, options=given.options)
    return out


def regression_of(root: Path, out: Path, target: str, **fields: Any) -> dict[str, Any]:
    return config_of(root, out, **{"task": {"regression": {"target": target}}, **fields})


def test_it_learns_ages(aged: Path, tmp_path: Path) -> None:
    found = run(tmp_path / "c", regression_of(aged, tmp_path / "run", "age"))
    metrics = found["metrics"]
    assert set(metrics) == {"mae", "r2"}
    assert metrics["r2"]["mean"] > 0.5 and metrics["mae"]["n"] == 14
    assert metrics["mae"]["mean"] == pytest.approx(
        np.mean([case["mae"] for case in found["cases"]]), abs=1e-5
    )
    assert "p0" not in found["split"]["labelled"] and len(found["split"]["labelled"]) == 25
    ages = Regression(target="age").values(Store.open(aged))
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert weights["mean"] == pytest.approx(np.nanmean(ages[:26]), rel=1e-5)
    assert weights["scale"] == pytest.approx(np.nanstd(ages[:26]), rel=1e-5)


def test_numbers_independent_of_voxels_are_not_learnt(aged: Path, tmp_path: Path) -> None:
    """Negative control: a column that is independent of the voxels."""
    assert run(tmp_path / "c", regression_of(aged, tmp_path / "run", "noise"))["metrics"]["r2"]["mean"] < 0.3


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("agge", "no such column"),
        ("site", "'A' of scan s0 is not a number"),
        ("same", "all labelled scans have 7"),
    ],
)
def test_a_column_without_numbers_is_refused(aged: Path, tmp_path: Path, target: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run(tmp_path / "c", regression_of(aged, tmp_path / "run", target))


def test_the_loss_is_in_standard_units(aged: Path) -> None:
    from medcl3d.config.field_types import Choice
    from medcl3d.sampling.plan import Plan
    from medcl3d.views import VIEWS

    store, task = Store.open(aged), Regression(target="age")
    recipe = VIEWS.build(Choice("mri", {}))
    batch = task.dataset(store, Plan(np.arange(1, 26), 25, 0), (16, 16, 16), recipe, 1, 0, 1)[0]
    assert batch.targets.dtype == torch.float32
    assert batch.targets.mean() == pytest.approx(0, abs=1e-5)
    assert batch.targets.std(correction=0) == pytest.approx(1, abs=1e-5)

    class Offset(torch.nn.Module):
        def forward(self, _x: torch.Tensor) -> torch.Tensor:
            return batch.targets + 0.5

    assert task.loss(Offset(), batch, recipe).value == pytest.approx(0.5 * 0.25)
