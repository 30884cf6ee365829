"""The first commands of the README work, with small settings."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medcl3d.cli import app
from medcl3d.datasets.sources.simulated import simulated
from tests.pages import ROOT, SMALL, blocks


def test_own_scans_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of scans and label maps without a table is enough, as in the README."""
    simulated(
        tmp_path / "my_scans", num_patients=6, max_visits=1, num_modalities=1, shape=(32, 32, 32), seed=0
    )
    (tmp_path / "my_scans" / "manifest.csv").unlink()
    found = [line for block in blocks(ROOT / "README.md") if block.is_shell for line in block.commands]
    lines = [shlex.split(line)[1:] for line in found if line.startswith("medcl3d ")][:5]
    assert [line[0] for line in lines] == ["init", "prepare", "pretrain", "finetune", "compare"]
    assert lines[4][-1] == "--check"
    monkeypatch.chdir(tmp_path)
    for line in lines:
        done = CliRunner().invoke(app, [*line, *SMALL.get(line[0], ())])
        assert done.exit_code == 0, f"{line}\n{done.output}"
    results = json.loads((tmp_path / "plan" / "runs" / "finetune" / "results.json").read_text())
    assert 0 <= results["metrics"]["dice"]["mean"] <= 1


@pytest.mark.slow
def test_the_python_block_runs_as_a_script(tmp_path: Path) -> None:
    (block,) = (one for one in blocks(ROOT / "README.md") if one.language == "python")
    (tmp_path / "script.py").write_text(block.code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(\w+) Interval\(mean=", done.stdout, re.M) == ["overlapping_crops", "same_patient"]
