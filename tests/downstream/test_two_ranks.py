"""Fine-tuning under torchrun: two ranks train as one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.pretraining.test_pretrain import ENVIRONMENT

TOOL = Path(__file__).parents[2] / "tools" / "finetune.py"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def run(path: Path, config: dict[str, Any], *launcher: str) -> Path:
    path.write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [sys.executable, *launcher, str(TOOL), str(path)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return Path(config["out_dir"])


@pytest.mark.parametrize(
    "task", ["segmentation", pytest.param("structure_at_centre", marks=pytest.mark.slow)]
)
def test_two_ranks_train_as_one_process(ball_root: Path, tmp_path: Path, task: str) -> None:
    """Dice is a ratio of sums over all patches: with separate sums per rank this fails."""
    config = {
        "data": {"root": str(ball_root), "patch_size": [16, 16, 8], "smaller_than_patch": "pad"},
        "task": {task: {}},
        "encoder": {"unet3d": {"channels": [4, 8], "strides": [1, 2]}},
        "train": {"steps": 4, "samples_per_step": 4, "log_every": 1, "precision": "float32", "lr": 3e-3},
    }
    one = run(tmp_path / "one.yaml", config | {"out_dir": str(tmp_path / "one")})
    two = run(tmp_path / "two.yaml", config | {"out_dir": str(tmp_path / "two")}, *TORCHRUN)
    curves = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (one, two)
    ]
    assert len(curves[0]) == 4
    for alone, shared in zip(*curves, strict=True):
        for name in set(alone) - {"samples_per_s", "data_wait", "peak_memory_mb"}:
            assert shared[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-5), (alone["step"], name)
    weights = load_file(two / "model.safetensors")
    for name, tensor in load_file(one / "model.safetensors").items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-3, rtol=1e-2, msg=name)
    assert json.loads((two / "status.json").read_text())["state"] == "done"
    alone, shared = (json.loads((folder / "results.json").read_text()) for folder in (one, two))
    assert [case["scan"] for case in shared["cases"]] == [case["scan"] for case in alone["cases"]]
    assert {k: m["n"] for k, m in shared["metrics"].items()} == {
        k: m["n"] for k, m in alone["metrics"].items()
    }
