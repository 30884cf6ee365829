"""Two starts of one comparison, and kills at any moment: no run is executed twice, and finished runs are
kept.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from medcl3d.comparison.compare import compare
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.runs import plan
from medcl3d.comparison.run.local import LocalLauncher
from medcl3d.comparison.run.lock import exclusive_start, is_locked
from medcl3d.config.loading import load
from medcl3d.core.errors import ConfigError
from tests.comparison.test_execute import SMALL, go

HERE = Path(__file__).parent
START = """
import sys
sys.path[:0] = [{here!r}]
from medcl3d.comparison.run import local
from medcl3d.comparison.compare import compare
from medcl3d.config.kinds import CONFIGS
CONFIGS.update(pretrain="fake_runs:PretrainConfig", finetune="fake_runs:FinetuneConfig")
local.command_of = lambda run: [{fake!r}, run.command, str(run.config), *run.overrides]
from pathlib import Path
try:
    compare(Path("compare.yaml"), sys.argv[1:])
except Exception as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
"""


def start(*overrides: str) -> subprocess.Popen[str]:
    """A comparison in a separate process, in the folder of the test."""
    code = START.format(here=str(HERE), fake=str(HERE / "fake_runs.py"))
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    return subprocess.Popen(
        [sys.executable, "-c", code, *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def starts(folder: Path) -> dict[str, int]:
    return {str(file.parent): len(file.read_text().splitlines()) for file in folder.rglob("starts.txt")}


@pytest.mark.slow
def test_two_simultaneous_starts_execute_each_run_once(comparison):
    comparison(
        arms={
            "scratch": {"set": {"seconds": 0.3}},
            "dense": {"pretraining": "dense", "set": {"seconds": 0.3}},
        }
    )
    both = [start(*SMALL), start(*SMALL)]
    said = [process.communicate(timeout=100) for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 0], [0, 1])
    if codes == [0, 1]:
        assert any(
            "ConfigError: runs: pid" in error and "is running a comparison" in error for _, error in said
        )
    assert set(starts(Path("runs")).values()) == {1}
    assert Path("runs/report.html").is_file()


def test_a_second_start_is_refused_and_the_lock_ends_with_its_holder(comparison):
    path = comparison()
    with (
        exclusive_start(Path("runs")),
        pytest.raises(ConfigError, match=rf"pid {os.getpid()} on .* wait until it ends"),
    ):
        compare(path, SMALL)
    with exclusive_start(Path("runs")):
        pass


@pytest.mark.slow
def test_a_kill_loses_only_running_runs(comparison):
    """SIGKILL to the comparison at several moments: finished runs are kept, and running ones are waited
    for.
    """
    comparison(
        arms={
            "scratch": {"set": {"seconds": 0.4}},
            "dense": {"pretraining": "dense", "set": {"seconds": 0.4}},
        }
    )
    done: set[str] = set()
    for moment in (0.3, 0.9, 1.4):
        process = start(*SMALL, "replicates=2")
        began = time.monotonic()
        while not Path("runs").is_dir() and time.monotonic() - began < 60:
            time.sleep(0.02)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        before = {k for k in done if starts(Path("runs"))[k] != 1}
        assert not before
        done |= {
            str(file.parent) for file in Path("runs").rglob("status.json") if '"done"' in file.read_text()
        }
    last = start(*SMALL, "replicates=2")
    _, error = last.communicate(timeout=100)
    assert last.returncode == 0, error
    assert set(starts(Path("runs")).values()) == {1}  # a run that outlived its comparison was waited for
    assert len(starts(Path("runs"))) == 6


def test_a_run_of_another_process_is_waited_for(comparison):
    path = comparison(arms={"scratch": {}})
    config = load(path, SMALL, CompareConfig)
    (run,) = plan(config)
    run.folder.mkdir(parents=True)
    lock = FileLock(run.folder / ".lock", thread_local=False)
    lock.acquire()
    assert is_locked(run.folder)
    threading.Timer(0.6, lock.release).start()
    began = time.monotonic()
    _, outcomes, said = go(path, *SMALL)
    assert time.monotonic() - began > 0.5
    assert "waiting for finetune scratch" in said
    assert outcomes[0].state == "done"
    assert not is_locked(run.folder)


def test_a_local_launcher_accepts_as_many_runs_as_it_executes_at_once():
    assert LocalLauncher(3).takes == 3
