"""Start of one run as a separate process, and record of its cost."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from medcl3d.comparison.plan.runs import Run
from medcl3d.io.atomic import write_json
from medcl3d.io.json_file import read_record

LOG = "compare.log"
STARTED = ".started.lock"
COST = "cost.json"
INPUTS = "inputs.json"
KIB_PER_MIB = 1024


class Child(Protocol):
    """A running run, local or on a cluster.

    resumable  whether a run that ends with exit code 75 (stopped by the cluster) is started again
    """

    started: float
    resumable: bool

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""

    def terminate(self) -> None:
        """Signal it to save and stop."""

    def kill(self) -> None:
        """End it at once."""

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for its end; subprocess.TimeoutExpired if that takes longer."""


def command_of(run: Run) -> list[str]:
    """The command line of a run, without the leading `python`."""
    return ["-m", "medcl3d", run.command, str(run.config), *run.overrides]


def encoder_hash(folder: Path) -> str | None:
    """SHA-256 of a pretraining's encoder, None if the file does not exist."""
    path = folder / "encoder.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def prepare_folder(run: Run) -> None:
    """Create the run's folder and record the encoder that it starts from."""
    run.folder.mkdir(parents=True, exist_ok=True)
    if run.needs is not None:
        write_json(run.folder / INPUTS, {"encoder_sha256": encoder_hash(run.needs)})


def start_process(
    command: Sequence[str], folder: Path, settings: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """`python COMMAND` with its output appended to the folder's log; `settings` extend its environment."""
    package = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    # The process inherits a lock that is released when it ends: other processes see it even if this one is
    # killed.
    with (folder / LOG).open("ab") as log, (folder / STARTED).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A new session: Ctrl-C reaches this process only, which then signals each run once to save and stop.
        return subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path, **settings},
            start_new_session=True,
            pass_fds=(lock.fileno(),),
        )


def record_cost(folder: Path, seconds: float, peak_memory_mib: float) -> None:
    """Add the cost of one start to cost.json: seconds add up over resumptions, memory is the maximum."""
    before = read_record(folder / COST)
    total = before.get("seconds", 0.0) + seconds
    most = max(before.get("peak_memory_mib", 0.0), peak_memory_mib)
    write_json(folder / COST, {"seconds": round(total, 1), "peak_memory_mib": round(most, 1)})


class Measured:
    """A process whose cost is recorded when it ends."""

    resumable = False

    def __init__(self, process: subprocess.Popen[bytes], folder: Path):
        self.process, self.folder, self.started = process, folder, time.monotonic()

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def terminate(self) -> None:
        if self.poll() is None:
            self.process.terminate()

    def kill(self) -> None:
        if self.poll() is None:
            self.process.kill()

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; subprocess.TimeoutExpired if it takes longer."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self._reap(0 if deadline is None else os.WNOHANG)) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.process.args, timeout or 0.0)
            time.sleep(0.05)
        return code

    def _reap(self, options: int) -> int | None:
        if self.process.returncode is None:
            # wait4 instead of Popen.poll: it returns the memory of this child and of its own children.
            try:
                pid, status, usage = os.wait4(self.process.pid, options)
            except ChildProcessError:
                # A signal handler or another thread also waited, was first, and sets the code.
                return self.process.returncode
            if pid == 0:
                return None
            self.process.returncode = os.waitstatus_to_exitcode(status)
            per_mib = KIB_PER_MIB * (1024 if sys.platform == "darwin" else 1)
            record_cost(self.folder, time.monotonic() - self.started, usage.ru_maxrss / per_mib)
        return self.process.returncode
