"""A comparison whose runs are fake commands with known results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from medcl3d.comparison.run import local, slurm
from medcl3d.config.kinds import CONFIGS

HERE = Path(__file__).parent


@pytest.fixture
def comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a comparison of three arms (scratch, dense +0.1, simclr +0.05) with the given fields replaced."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.chdir(tmp_path)
    for command, name in (("pretrain", "PretrainConfig"), ("finetune", "FinetuneConfig")):
        monkeypatch.setitem(CONFIGS, command, f"fake_runs:{name}")
    fake = str(HERE / "fake_runs.py")
    for module in (local, slurm):
        monkeypatch.setattr(
            module, "command_of", lambda run: [fake, run.command, str(run.config), *run.overrides]
        )
    files = {
        "dense.yaml": {
            "pairs": {"voxel_correspondence": {"num_points": 9}},
            "objective": {"dense": {}},
            "train": {"steps": 5},
            "out_dir": "x",
        },
        "simclr.yaml": {
            "pairs": {"overlapping_crops": {}},
            "objective": {"simclr": {}},
            "train": {"steps": 5},
            "out_dir": "x",
        },
        "finetune.yaml": {"train": {"steps": 3}, "out_dir": "x"},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(yaml.safe_dump(content))

    def write(**replaced: Any) -> Path:
        content: dict[str, Any] = {
            "out_dir": "runs",
            "pretrainings": {"dense": {"config": "dense.yaml"}, "simclr": {"config": "simclr.yaml"}},
            "finetune": {"config": "finetune.yaml"},
            "arms": {
                "scratch": {},
                "dense, all": {"pretraining": "dense", "set": {"transfer": "all", "gain": 0.1}},
                "simclr": {"pretraining": "simclr", "set": {"gain": 0.05}},
            },
            "vary": {"num_labelled": [2, 8]},
            "controls": [],
            "replicates": 2,
            "reference": "scratch",
        }
        path = Path("compare.yaml")
        path.write_text(yaml.safe_dump({**content, **replaced}, sort_keys=False))
        return path

    return write
