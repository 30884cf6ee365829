"""Execution of a plan: done runs are skipped, other runs refused, failures reported, stops clean."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from medcl3d.comparison.analysis.provenance import check_provenance
from medcl3d.comparison.compare import compare
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.runs import Run, plan
from medcl3d.comparison.run.execute import Outcome, execute, step_of
from medcl3d.comparison.run.finished_runs import finished, is_done, measured_before
from medcl3d.comparison.run.launch import INPUTS, LOG, encoder_hash
from medcl3d.comparison.run.local import LocalLauncher
from medcl3d.config.loading import load
from medcl3d.core.errors import ConfigError, DataError, Stopped


def go(path: Path, *overrides: str) -> tuple[list[Run], list[Outcome], str]:
    config = load(path, overrides, CompareConfig)
    runs = plan(config)
    console = Console(file=io.StringIO(), width=200)
    outcomes = execute(runs, LocalLauncher(config.jobs), console)
    return runs, outcomes, console.file.getvalue()  # type: ignore[attr-defined]


SMALL = ("replicates=1", "vary={num_labelled: [2]}")


def test_runs_go_once_and_are_kept(comparison):
    path = comparison()
    runs, outcomes, said = go(path, *SMALL)
    assert [o.state for o in outcomes] == ["done"] * 5
    assert "5/5 done" in said
    assert all(is_done(run) for run in runs)
    _, again, _ = go(path, *SMALL)
    assert [o.state for o in again] == ["kept"] * 5
    assert all(len((run.folder / "starts.txt").read_text().splitlines()) == 1 for run in runs)


def test_a_larger_grid_keeps_finished_runs(comparison):
    path = comparison()
    go(path, *SMALL)
    _, outcomes, _ = go(path, "replicates=2", "vary={num_labelled: [2]}")
    assert [o.state for o in outcomes] == ["kept"] * 5 + ["done"] * 5


def test_an_incomplete_run_resumes(comparison):
    path = comparison()
    runs, _, _ = go(path, *SMALL)
    (runs[-1].folder / "status.json").write_text(json.dumps({"state": "stopped", "step": 1}))
    _, outcomes, _ = go(path, *SMALL)
    assert [o.state for o in outcomes] == ["kept"] * 4 + ["done"]


def test_another_run_in_the_folder_is_refused(comparison):
    path = comparison()
    go(path, *SMALL)
    with pytest.raises(
        ConfigError, match=r"finetune.*seed_0: holds another run: train.steps: 3 -> 2.*Delete the folder"
    ):
        go(path, *SMALL, "finetune.set={train.steps: 2}")


def test_a_run_older_than_a_field_is_kept_if_its_default_is_planned(comparison):
    path = comparison()
    runs, _, _ = go(path, *SMALL)
    for run in runs:
        held = yaml.safe_load((run.folder / "config.yaml").read_text())
        then = {name: value for name, value in held.items() if name not in ("encoder", "seconds")}
        then["train"].pop("samples_per_step")
        (run.folder / "config.yaml").write_text(yaml.safe_dump(then))
    _, outcomes, _ = go(path, *SMALL)
    assert {o.state for o in outcomes} == {"kept"}
    with pytest.raises(ConfigError, match=r"holds another run: seconds: 0.0 -> 0.1\. Delete"):
        go(path, *SMALL, "finetune.set={seconds: 0.1}")
    (runs[-1].folder / "config.yaml").write_text(yaml.safe_dump({**then, "gone": 1}))
    with pytest.raises(ConfigError, match=r"holds another run: .*gone: 1 -> None"):
        go(path, *SMALL)


def test_fields_that_change_nothing_are_free(comparison):
    path = comparison()
    go(path, *SMALL)
    _, outcomes, _ = go(path, *SMALL, "pretrain={train.workers: 2}")
    assert {o.state for o in outcomes} == {"kept"}


def test_a_fine_tuning_of_another_encoder_is_refused(comparison):
    path = comparison()
    runs, _, _ = go(path, *SMALL)
    (runs[0].folder / "encoder.safetensors").write_text("other weights")
    with pytest.raises(ConfigError, match="started from another encoder"):
        go(path, *SMALL)


def test_more_steps_continue_pretrainings_and_repeat_their_measurements(comparison):
    path, longer = comparison(), (*SMALL, "pretrain={train.steps: 9}")
    before, _, _ = go(path, *SMALL)
    config = load(path, longer, CompareConfig)
    runs = plan(config)
    assert [str(run.name) for run in finished(runs)] == ["scratch"]
    _, outcomes, _ = go(path, *longer)
    assert [o.state for o in outcomes] == ["kept"] + ["done"] * 4
    for run in (run for run in before if run.needs is not None):
        former = run.folder.with_name(f"{run.folder.name}_of_5_steps")
        assert (former / "results.json").is_file() and (run.folder / "results.json").is_file()
        assert encoder_hash(run.needs) == json.loads((run.folder / INPUTS).read_text())["encoder_sha256"]
        assert measured_before(run)
    assert any("were continued (train.steps 5 -> 9)" in note for note in check_provenance(runs))
    _, outcomes, _ = go(path, *longer)
    assert {o.state for o in outcomes} == {"kept"}
    with pytest.raises(ConfigError, match=r"holds another run: train\.steps: 9 -> 5"):
        go(path, *SMALL)


def test_a_kill_after_an_extension_leaves_its_measurements_to_repeat(comparison):
    path, longer = comparison(), (*SMALL, "pretrain={train.steps: 9}")
    runs, _, _ = go(path, *SMALL)
    pretraining = runs[0]
    steps = ["train.steps=9", *(one for one in pretraining.overrides if "train.steps" not in one)]
    fake = Path(__file__).with_name("fake_runs.py")
    command = [sys.executable, str(fake), "pretrain", str(pretraining.config), *steps]
    subprocess.run(command, check=True)
    _, outcomes, _ = go(path, *longer)
    assert sum(o.state == "done" for o in outcomes) == 3  # the other pretraining and both measurements


def test_a_deleted_pretraining_is_not_run_again_if_nothing_needs_it(comparison):
    path = comparison()
    runs, _, _ = go(path, *SMALL)
    shutil.rmtree(runs[0].folder)
    _, outcomes, _ = go(path, *SMALL)
    assert [o.state for o in outcomes] == ["kept"] * 5 and not runs[0].folder.exists()
    shutil.rmtree(next(run.folder for run in runs if run.needs == runs[0].folder))
    _, outcomes, _ = go(path, *SMALL)
    assert sorted(o.state for o in outcomes) == ["done"] * 2 + ["kept"] * 3
    assert is_done(runs[0])
    (runs[0].folder / "encoder.safetensors").unlink()
    _, outcomes, _ = go(path, *SMALL)
    assert [o.state for o in outcomes] == ["kept"] * 5


@pytest.mark.parametrize("name", ["status.json", "results.json", "inputs.json", "config.yaml"])
def test_a_damaged_file_is_named_with_a_remedy(comparison, name):
    path = comparison()
    runs, _, _ = go(path, *SMALL)
    run = next(run for run in runs if run.needs is not None)
    (run.folder / name).write_text('{"cut')
    with pytest.raises(
        DataError, match=rf"{run.folder}/{name}: is damaged .*; delete its folder to run it again"
    ):
        compare(path, SMALL)


def test_a_done_run_without_results_is_named(comparison):
    path = comparison()
    runs, _, _ = go(path, *SMALL)
    (runs[-1].folder / "results.json").unlink()
    with pytest.raises(
        DataError, match=r"is done but results\.json is missing; delete the folder to run it again"
    ):
        go(path, *SMALL)


def test_failed_runs_give_no_time_estimate(comparison):
    arms = {
        "scratch": {"set": {"fail_at_seed": 0}},
        "dense": {"pretraining": "dense", "set": {"seconds": 0.3}},
    }
    _, _, said = go(comparison(arms=arms), *SMALL)
    assert "1/3 done" in said and "failed" in said
    assert "finetune: about" not in said.split("failed")[1].split("done")[0]


def test_a_failed_run_is_reported_and_the_others_continue(comparison):
    arms = {"scratch": {}, "bad": {"set": {"fail_at_seed": 0}}, "dense": {"pretraining": "dense"}}
    runs, outcomes, said = go(comparison(arms=arms), *SMALL)
    states = {o.run.name: o for o in outcomes if o.run.command == "finetune"}
    assert {name: o.state for name, o in states.items()} == {
        "scratch": "done",
        "bad": "failed",
        "dense": "done",
    }
    assert states["bad"].reason == "exit 1: medcl3d: the scan <b>17</b> is broken; mend it"
    assert states["bad"].reason in said
    bad = next(run for run in runs if run.name == "bad")
    assert "the log begins" in (bad.folder / LOG).read_text()


def test_without_its_encoder_a_fine_tuning_does_not_run(comparison, tmp_path):
    path = comparison()
    (tmp_path / "runs" / "pretrain").mkdir(parents=True)
    (tmp_path / "runs" / "pretrain" / "dense").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="dense"):
        go(path, *SMALL)
    (tmp_path / "runs" / "pretrain" / "dense").unlink()
    config = load(path, SMALL, CompareConfig)
    runs = plan(config)
    broken = [Run(**{**r.__dict__, "config": Path("absent.yaml")}) if r.name == "dense" else r for r in runs]
    outcomes = execute(broken, LocalLauncher(1), Console(file=io.StringIO()))
    reasons = {o.run.name: o.reason for o in outcomes}
    assert "absent.yaml" in reasons["dense"]
    assert reasons["dense, all"] == "its pretraining failed"
    assert reasons["scratch"] == reasons["simclr"] == ""


def test_jobs_run_at_once_and_share_the_processors(comparison):
    arms = {"scratch": {"set": {"seconds": 1.0}}, "other": {"set": {"seconds": 1.0}}}
    runs, _, _ = go(comparison(arms=arms), *SMALL, "jobs=2")
    starts = [(run.folder / "starts.txt").read_text().split() for run in runs]
    assert abs(float(starts[0][0]) - float(starts[1][0])) < 0.9
    assert {threads for _, threads in starts} == {str(max(1, (os.cpu_count() or 1) // 2))}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stop_ends_the_children(comparison, number):
    arms = {"scratch": {"set": {"seconds": 60.0}}}
    path = comparison(arms=arms)
    folder = Path("runs/finetune/scratch/num_labelled=2/seed_0")

    def interrupt() -> None:
        while not (folder / "status.json").is_file():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="the same command resumes"):
        go(path, *SMALL)
    assert json.loads((folder / "status.json").read_text())["state"] == "stopped"
    assert signal.getsignal(signal.SIGTERM) is before


def test_step_of_reads_the_last_complete_row(comparison, tmp_path):
    runs, _, _ = go(comparison(), *SMALL)
    assert step_of(runs[0]) == 5
    with (runs[0].folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    assert step_of(runs[0]) == 5


def test_a_comparison_whose_output_is_no_longer_read_writes_its_report(comparison, monkeypatch):
    path = comparison()
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", buffering=1) as stream:
        monkeypatch.setattr("sys.stdout", stream)
        report = compare(path, SMALL)
    assert report.is_file()
