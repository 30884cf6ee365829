"""The first commands of the README work, with small settings."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medcl3d.cli import app
from medcl3d.datasets.sources.simulated import simulated
from tests.pages import ROOT, SMALL, blocks


def test_own_scans_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table with only paths and labels is enough, as in the README."""
    manifest = simulated(
        tmp_path / "my_scans", num_patients=6, max_visits=1, num_modalities=1, shape=(32, 32, 32), seed=0
    )
    with (tmp_path / "my_scans.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        for row in manifest.table.to_dict("records"):
            writer.writerow([f"my_scans/{row['path']}", f"my_scans/{row['label']}"])
    found = [line for block in blocks(ROOT / "README.md") if block.is_shell for line in block.commands]
    lines = [shlex.split(line)[1:] for line in found if line.startswith("medcl3d ")][:4]
    assert [line[0] for line in lines] == ["init", "prepare", "pretrain", "finetune"]
    monkeypatch.chdir(tmp_path)
    for line in lines:
        done = CliRunner().invoke(app, [*line, *SMALL.get(line[0], ())])
        assert done.exit_code == 0, f"{line}\n{done.output}"
    results = json.loads((tmp_path / "runs" / "fine" / "results.json").read_text())
    assert 0 <= results["metrics"]["dice"]["mean"] <= 1
