"""Incomplete runs are listed with their state and reason."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from medcl3d.comparison.analysis.incomplete_runs import count, incomplete_runs
from medcl3d.comparison.plan.config import Arm, CompareConfig, Recipe
from medcl3d.comparison.plan.runs import Run
from medcl3d.comparison.run.launch import LOG, STARTED
from medcl3d.io.atomic import write_json

CONFIG = CompareConfig(
    out_dir=Path("runs"), finetune=Recipe(config=Path("f.yaml")), arms={"a": Arm()}, reference="a"
)


def run_of(
    folder: Path,
    name: str,
    log: str | None = None,
    needs: Path | None = None,
    command: str = "finetune",
    **status,
) -> Run:
    run = Run(command, name, (), 0, Path("x.yaml"), (), folder / name, needs, {})  # type: ignore[arg-type]
    run.folder.mkdir()
    if status:
        write_json(run.folder / "status.json", status)
    if log is not None:
        (run.folder / LOG).write_text(log)
    return run


def test_every_state_has_a_reason(tmp_path: Path) -> None:
    pretraining = run_of(tmp_path, "p", "x\nmedcl3d: no scans\n", command="pretrain")
    runs = [
        run_of(tmp_path, "never", needs=pretraining.folder),
        run_of(tmp_path, "ended", state="done", reason=""),
        run_of(tmp_path, "stopped", state="stopped", step=7, reason="SIGTERM"),
        run_of(tmp_path, "noted", "bye\n", state="failed", reason="DataError: scan 17 is broken"),
        run_of(tmp_path, "killed", "step 3\nstep 4\n", state="running"),
        run_of(tmp_path, "going", "step 3\n", state="running"),
        pretraining,
    ]
    (tmp_path / "going" / STARTED).touch()
    with FileLock(tmp_path / "going" / STARTED):
        found = incomplete_runs(runs, CONFIG)
    said = {one.run.name: (one.state, one.reason) for one in found}
    assert said == {
        "noted": ("failed", "DataError: scan 17 is broken"),
        "killed": (
            "failed",
            "ended without a message, as a killed run does, after step 0; last output: step 4",
        ),
        "p": ("failed", "medcl3d: no scans"),
        "stopped": ("stopped", "at step 7; the same command resumes it"),
        "going": ("running", "a process is executing it"),
        "never": ("not started", "its pretraining is not done"),
    }
    assert [one.state for one in found] == ["failed"] * 3 + ["stopped", "running", "not started"]
    assert count(found) == "3 failed, 1 stopped, 1 running, 1 not started" and count([]) == ""


def test_a_deleted_pretraining_that_nothing_needs_is_left_out(tmp_path: Path) -> None:
    gone = Run("pretrain", "p", (), 0, Path("x.yaml"), (), tmp_path / "p", None, {})
    measured = run_of(tmp_path, "a", needs=gone.folder, state="done")
    assert incomplete_runs([gone, measured], CONFIG) == []
    left = run_of(tmp_path, "b", needs=gone.folder)
    assert [one.run.name for one in incomplete_runs([gone, measured, left], CONFIG)] == ["p", "b"]
