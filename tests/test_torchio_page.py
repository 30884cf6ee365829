"""The code of the page for TorchIO users runs unchanged."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchio as tio
import yaml

from medcl3d.config.loading import load
from medcl3d.pretraining.config import PretrainConfig

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "howto" / "torchio.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    return [code for name, code in found if name == language]


@pytest.mark.parametrize("block", blocks("python"))
def test_python_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, shape in (
        ("01_before", (24, 20, 18)),
        ("01_after", (20, 22, 19)),
        ("02_before", (18, 18, 20)),
        ("02_after", (30, 17, 17)),
    ):
        tio.ScalarImage(tensor=torch.rand(1, *shape), affine=np.diag([1, 1.5, 1, 1])).save(f"{name}.nii.gz")
    names: dict[str, object] = {}
    exec(block, names)
    assert names["first"].shape == names["second"].shape == (8, 1, 16, 16, 16)  # type: ignore[attr-defined]
    assert names["where"].shape == (8, 2, 6) and set(names["of_scan"]) <= {"before", "after"}  # type: ignore[attr-defined, call-overload]


@pytest.mark.parametrize("block", blocks("yaml"))
def test_yaml_is_a_configuration(block: str, tmp_path: Path) -> None:
    whole = yaml.safe_load((ROOT / "configs" / "pretrain" / "mine.yaml").read_text()) | yaml.safe_load(block)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(whole))
    load(tmp_path / "a.yaml", (), PretrainConfig)


def test_command_names_existing_files_and_fields() -> None:
    _, _, config, *overrides = blocks("")[0].split()
    assert load(ROOT / config, overrides, PretrainConfig).loader == "torchio"
