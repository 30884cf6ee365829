"""The commands of the README work, with small settings."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from medcl3d.datasets.sources.simulated import simulated
from tests.test_cli import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SMALL = {
    "pretrain": "data.patch_size=[16,16,16] encoder.unet3d.channels=[4,8] encoder.unet3d.strides=[1,2] "
    "train.steps=2 train.warmup_steps=1 train.samples_per_step=2 train.workers=0",
    "finetune": "data.patch_size=[16,16,16] encoder.unet3d.channels=[4,8] encoder.unet3d.strides=[1,2] "
    "train.steps=2 train.warmup_steps=1 train.samples_per_step=2 num_labelled=2",
}


def commands() -> list[str]:
    """Lines of all code blocks that are not YAML, with continued lines joined and comments removed."""
    blocks = re.findall(r"```\n(.*?)```", README, flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].split(" # ")[0].strip() for line in lines if line.strip()]


def test_named_files_and_commands_exist() -> None:
    for line in commands():
        words = shlex.split(line)
        if words[0] == "medcl3d":
            assert words[1] in COMMANDS, line
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), line
        for word in words:
            if word.startswith(("configs/", "tools/")):
                assert (ROOT / word).is_file(), line
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link


def small(command: str, folder: Path) -> list[str]:
    words = shlex.split(command)
    return [sys.executable, "-m", "medcl3d", *words[1:], *SMALL.get(words[1], "").split()]


def test_own_scans_line_by_line(tmp_path: Path) -> None:
    """A table with only paths and labels is enough, as in the README."""
    manifest = simulated(
        tmp_path / "my_scans", num_patients=6, max_visits=1, num_modalities=1, shape=(32, 32, 32), seed=0
    )
    with (tmp_path / "my_scans.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        for row in manifest.table.to_dict("records"):
            writer.writerow([f"my_scans/{row['path']}", f"my_scans/{row['label']}"])
    lines = [line for line in commands() if line.startswith("medcl3d ")][:4]
    assert [line.split()[1] for line in lines] == ["init", "prepare", "pretrain", "finetune"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for line in lines:
        done = subprocess.run(
            small(line, tmp_path), cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    results = json.loads((tmp_path / "runs" / "fine" / "results.json").read_text())
    assert 0 <= results["metrics"]["dice"]["mean"] <= 1


@pytest.mark.slow
def test_the_python_block_runs_as_a_script(tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "script.py").write_text(block)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(\w+) Interval\(mean=", done.stdout, re.M) == ["overlapping_crops", "same_patient"]
