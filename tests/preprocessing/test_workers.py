from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medcl3d.core.errors import DataError
from medcl3d.preprocessing.options import PrepareOptions
from medcl3d.preprocessing.prepare import prepare

CODE = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from medcl3d.preprocessing.workers import _end_with_parent
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=context, initializer=_end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(60)
"""


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_worker_exits_with_its_parent(tmp_path) -> None:
    script = tmp_path / "main.py"
    script.write_text(CODE)
    root = str(Path(__file__).parents[2])
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": root}
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    assert _is_running(worker)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while _is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_running(worker)


def test_it_stops_early_if_too_many_scans_are_refused(cohort, tmp_path) -> None:
    for i in range(2):
        (cohort / f"images/{i}.nii.gz").write_bytes(b"<html>")
    with pytest.raises(DataError, match="HTML"):
        prepare("csv", cohort, tmp_path / "out", options=PrepareOptions(workers=1))
    report = (tmp_path / "out/report.csv").read_text()
    assert report.count("not tried") == 4 and report.count("refused") == 2


def test_a_script_without_a_main_guard_is_not_run_again(tmp_path) -> None:
    script = tmp_path / "main.py"
    script.write_text(
        "from medcl3d.preprocessing.workers import in_parallel\n"
        "print(list(in_parallel(abs, [1, 2, 3], 2, str)))\n"
    )
    root = str(Path(__file__).parents[2])
    ended = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root}
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert sorted(ended.stdout.strip()) == sorted("[1, 2, 3]")
