"""The state of runs: from their files and locks, without starting anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from filelock import FileLock

from medcl3d.comparison.status import state_of, status
from medcl3d.core.errors import DataError

CONFIG = "train: {steps: 100, samples_per_step: 8}\n"


def write_run(
    folder: Path, state: str = "running", reason: str = "", rows: int = 4, config: str = CONFIG
) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    content = {"state": state, "step": 20, "reason": reason, "host": "node", "pid": 4}
    (folder / "status.json").write_text(json.dumps(content))
    lines = [
        json.dumps({"step": 10 * n, "loss": 1 / n, "samples_per_s": 16.0}) + "\n" for n in range(1, rows + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(lines) + '{"step": 50, "lo')
    return folder


def test_a_running_run_has_its_last_logged_step_and_the_time_left(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    with FileLock(folder / ".lock"):
        found = state_of(folder)
    assert (found.state, found.step, found.steps, found.loss) == ("running", 40, 100, 0.25)
    assert found.left == (100 - 40) * 8 / 16


def test_a_run_without_a_process_was_killed(tmp_path: Path) -> None:
    found = state_of(write_run(tmp_path / "run"))
    assert found.state == "killed" and found.left is None
    assert "pid 4 on node is gone; the same command resumes" in found.reason


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        ("failed", "DataError: a.nii: no voxels\nmore", "DataError: a.nii: no voxels"),
        ("stopped", "stopped by a signal", "stopped by a signal; the same command resumes"),
        ("done", "", ""),
    ],
)
def test_a_reason_is_the_recorded_one(tmp_path: Path, state: str, reason: str, words: str) -> None:
    folder = write_run(tmp_path / "run", state, reason)
    (folder / "compare.log").write_text("a later line\n")
    found = state_of(folder)
    assert (found.state, found.reason) == (state, words)


def test_a_run_that_failed_before_it_wrote_a_status_has_the_last_line_of_its_log(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "compare.log").write_text("medcl3d: c.yaml: no such key\n\n")
    found = state_of(folder)
    assert (found.state, found.reason, found.step) == ("failed", "medcl3d: c.yaml: no such key", None)


@pytest.mark.parametrize("name", ["status.json", "config.yaml"])
def test_a_damaged_file_is_the_reason(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / name).write_bytes(b"\xff\x00{")
    found = state_of(folder)
    assert found.state == "damaged" and name in found.reason


def test_a_comparison_lists_unfinished_runs_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(12):
        write_run(tmp_path / "compare" / "pretrain" / f"seed_{number}", "done")
    write_run(tmp_path / "compare" / "finetune" / "scratch", "failed", "MachineError: no space")
    (tmp_path / "compare" / ".compare.lock").touch()
    assert len(status([tmp_path / "compare"])) == 13
    printed = capsys.readouterr().out
    assert "1 failed, 12 done; no comparison is running" in printed
    assert "finetune/scratch" in printed and "MachineError: no space" in printed and "seed_3" not in printed


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    for folder, words in ((tmp_path, "contains no run"), (tmp_path / "x", "no such folder")):
        with pytest.raises(DataError, match=words):
            status([folder])
