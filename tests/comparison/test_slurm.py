"""Jobs through submitit's local executor: arrays are submitted, stopped jobs resume, failures are
reported.
"""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from medcl3d.comparison.compare import compare
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.runs import plan
from medcl3d.comparison.run.execute import execute, last_line
from medcl3d.comparison.run.finished_runs import is_done
from medcl3d.comparison.run.launch import COST, LOG
from medcl3d.comparison.run.local import LocalLauncher
from medcl3d.comparison.run.slurm import JOB, RunJob, SlurmChild, SlurmLauncher, is_queued
from medcl3d.config.loading import load
from medcl3d.core.errors import ConfigError, MachineError
from medcl3d.io.json_file import read_record

SMALL = ("replicates=1", "vary={num_labelled: [2]}")
LOCAL = {"cluster": "local", "timeout_min": 5}


@pytest.mark.slow
def test_runs_are_jobs_with_logs(comparison):
    config = load(comparison(), SMALL, CompareConfig)
    runs = plan(config)
    launcher = SlurmLauncher(config.out_dir, 1, LOCAL)
    outcomes = execute(runs, launcher, Console(file=io.StringIO()))
    assert [o.state for o in outcomes] == ["done"] * 5
    assert all(is_done(run) for run in runs)
    assert all(read_record(run.folder / COST)["peak_memory_mib"] > 1 for run in runs)
    assert len([f for f in (config.out_dir / "slurm").iterdir() if f.name.isdigit()]) == 5


@pytest.mark.slow
def test_a_failed_job_is_reported_with_the_last_line_of_its_run(comparison):
    arms = {"scratch": {}, "bad": {"set": {"fail_at_seed": 0}}}
    config = load(comparison(arms=arms), SMALL, CompareConfig)
    outcomes = execute(plan(config), SlurmLauncher(config.out_dir, 1, LOCAL), Console(file=io.StringIO()))
    assert {o.run.name: o.state for o in outcomes} == {"scratch": "done", "bad": "failed"}
    assert "the scan <b>17</b> is broken" in next(o.reason for o in outcomes if o.state == "failed")


def test_a_job_at_its_time_limit_saves_and_is_requeued(tmp_path):
    """submitit calls checkpoint in the job: the run receives SIGTERM, and the same run is requeued."""
    script = tmp_path / "run.py"
    script.write_text(
        "import signal, sys, time, pathlib\n"
        "def stop(*_):\n    pathlib.Path('saved').write_text('')\n    sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        f"pathlib.Path({str(tmp_path / 'began')!r}).write_text('')\n"
        f"import os; os.chdir({str(tmp_path)!r})\ntime.sleep(60)\n"
    )
    job = RunJob([str(script)], tmp_path)
    codes: list[int] = []
    going = threading.Thread(target=lambda: codes.append(_without_signals(job)), daemon=True)
    going.start()
    while not (tmp_path / "began").exists():
        time.sleep(0.02)
    time.sleep(0.1)
    again = job.checkpoint()
    going.join(20)
    assert codes == [75]
    assert (tmp_path / "saved").exists()
    assert again.function.command == job.command
    assert again.function.folder == tmp_path


def _without_signals(job: RunJob) -> int:
    """Run a job in a thread that is not the main one, in which it cannot set a signal handler."""
    from unittest import mock

    with mock.patch("medcl3d.comparison.run.slurm.signal.signal"):
        return job()


class StopsOnce:
    """A launcher whose first job of every run is stopped by the cluster."""

    at_once = takes = 10

    def __init__(self, then):
        self.then, self.seen = then, set()

    def launch(self, runs):
        repeated = [run for run in runs if run.folder in self.seen]
        again = iter(self.then.launch(repeated) if repeated else ())
        children = [next(again) if run.folder in self.seen else Stopped() for run in runs]
        self.seen |= {run.folder for run in runs}
        return children

    def busy(self, run):
        return False


class Stopped:
    resumable, started = True, 0.0

    def poll(self):
        return 75

    def terminate(self):
        pass

    kill = wait = terminate


@pytest.mark.slow
def test_a_run_stopped_by_the_cluster_is_started_again(comparison):
    config = load(comparison(), SMALL, CompareConfig)
    launcher = StopsOnce(SlurmLauncher(config.out_dir, 1, LOCAL))
    outcomes = execute(plan(config), launcher, Console(file=io.StringIO()))
    assert [o.state for o in outcomes] == ["done"] * 5


class Died:
    """A submitit job whose node failed."""

    job_id, state = "7_0", "NODE_FAIL"

    def done(self):
        return True

    def exception(self):
        return RuntimeError("the job\nhas not produced any output")


def test_a_job_that_dies_is_reported(comparison):
    (run,) = plan(load(comparison(arms={"scratch": {}}), SMALL, CompareConfig))
    run.folder.mkdir(parents=True)
    assert SlurmChild(Died(), run.folder).poll() == 1
    assert last_line(run.folder / LOG) == "job 7_0 (NODE_FAIL): the job has not produced any output"


def test_a_missing_submitit_is_answered_with_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MachineError, match=r"pip install 'medcl3d\[slurm\]'"):
        SlurmLauncher(tmp_path, 1, {"timeout_min": 5})


def test_a_missing_cluster_or_a_wrong_field_ends_with_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match="executor: local") as error:
        SlurmLauncher(tmp_path, 1, {"timeout_min": 5})
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"slurm: .*timeout_minutes"):
        SlurmLauncher(tmp_path, 1, {**LOCAL, "timeout_minutes": 3})


def test_an_array_is_submitted_with_requeue(tmp_path, monkeypatch):
    """The file for sbatch, written without a cluster."""
    import submitit

    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    monkeypatch.setattr("medcl3d.comparison.run.slurm.shutil.which", lambda name: f"/bin/{name}")
    launcher = SlurmLauncher(tmp_path, 3, {"timeout_min": 30, "slurm_partition": "gpu"})
    inner = launcher._executor._executor
    text = inner._make_submission_file_text("true", "uid")
    assert "#SBATCH --requeue" in text
    assert "#SBATCH --partition=gpu" in text
    assert json.loads(json.dumps(inner.parameters))["array_parallelism"] == 3
    assert Path(tmp_path / "slurm").name in text


def test_a_queued_job_is_not_submitted_again(comparison, tmp_path, monkeypatch):
    """The comparison that submitted it was killed; the cluster still has its job."""
    config = load(comparison(), SMALL, CompareConfig)
    run = plan(config)[0]
    run.folder.mkdir(parents=True)
    assert not is_queued(run.folder), "no job was submitted"
    (run.folder / JOB).write_text("17_3\n")
    assert not is_queued(run.folder), "this machine has no cluster"
    squeue, tools = tmp_path / "tools" / "squeue", tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    for answer, expected in (
        ("echo PENDING", True),
        ("echo RUNNING", True),
        ("echo COMPLETED", False),
        ("exit 1", False),
        ("true", False),
    ):
        squeue.write_text(f'#!/bin/sh\n[ "$3" = --jobs=17_3 ] || exit 2\n{answer}\n')
        squeue.chmod(0o755)
        assert is_queued(run.folder) is expected, answer


def test_a_run_still_on_the_cluster_is_waited_for(comparison, monkeypatch):
    config = load(comparison(), SMALL, CompareConfig)
    runs = plan(config)
    asked: list[str] = []

    class Busy(LocalLauncher):
        def busy(self, run) -> bool:
            asked.append(str(run))
            return run is runs[0] and asked.count(str(run)) < 3

    file = io.StringIO()
    outcomes = execute(runs, Busy(1), Console(file=file, width=200))
    assert [o.state for o in outcomes] == ["done"] * 5 and asked.count(str(runs[0])) == 3
    assert f"waiting for {runs[0]}, which another process is executing" in file.getvalue()


@pytest.mark.parametrize(
    ("slurm", "error", "words"),
    [
        ("{}", ConfigError, r"slurm.timeout_min is missing, and jobs would end after 5 minutes; set the"),
        ("{timeout_min: 60}", MachineError, r"slurm: sbatch is not installed here; start it on a machine"),
    ],
)
def test_the_dry_run_refuses_a_cluster_without_time_limit_or_sbatch(
    comparison, monkeypatch, slurm, error, words
):
    monkeypatch.setattr("medcl3d.comparison.run.slurm.shutil.which", lambda name: None)
    with pytest.raises(error, match=words):
        compare(comparison(), ["executor=slurm", f"slurm={slurm}"], check=True)
