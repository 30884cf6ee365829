"""Runs as cluster jobs: job arrays through submitit, requeued and resumed after their time limit."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medcl3d.comparison.plan.runs import Run
from medcl3d.comparison.run.launch import LOG, Child, Measured, command_of, prepare_folder, start_process
from medcl3d.comparison.run.lock import is_locked
from medcl3d.core.errors import ConfigError, MachineError
from medcl3d.io.atomic import write_text

MANY = 10**6
DEFAULT_MINUTES = 5
"""submitit's time limit of a job."""
ELSEWHERE = "start it on a machine with sbatch, or set executor: local"
JOB = "job.txt"
OVER = {
    *("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("BOOT_FAIL", "DEADLINE", "REVOKED"),
}
SAVE_SECONDS = 60.0
"""Seconds that a job may take to save before its end; submitit signals it 90 s before."""


class RunJob:
    """A job: executes the run's command; at the time limit the run saves and the job is requeued."""

    def __init__(self, command: Sequence[str], folder: Path):
        self.command, self.folder = tuple(command), folder
        self._going: Measured | None = None

    def __call__(self) -> int:
        """The run's exit code; 75 if it was stopped and can resume."""
        self._going = Measured(start_process(self.command, self.folder, {}), self.folder)
        # submitit ignores SIGTERM, which scancel sends, and the run in its own session would not receive it.
        signal.signal(signal.SIGTERM, lambda *_: self._stop())
        try:
            return self._going.wait()
        finally:
            self._stop()

    def _stop(self) -> None:
        if self._going is not None and self._going.poll() is None:
            self._going.terminate()
            try:
                self._going.wait(SAVE_SECONDS)
            except subprocess.TimeoutExpired:
                self._going.kill()
                self._going.wait()

    def checkpoint(self) -> Any:
        """Called by submitit before the job leaves its node: the same run, which resumes."""
        import submitit

        self._stop()
        return submitit.helpers.DelayedSubmission(RunJob(self.command, self.folder))


class SlurmChild:
    """A run as a job of an array."""

    resumable = True

    def __init__(self, job: Any, folder: Path):
        self.job, self.folder, self.started = job, folder, time.monotonic()

    def poll(self) -> int | None:
        """The exit code; 1 if the job itself failed (the run's log then has the reason)."""
        if not self.job.done():
            return None
        error = self.job.exception()
        if error is None:
            return int(self.job.result())
        with (self.folder / LOG).open("a", encoding="utf-8") as log:
            log.write(f"job {self.job.job_id} ({self.job.state}): {' '.join(str(error).split())[:500]}\n")
        return 1

    def terminate(self) -> None:
        """Cancel the job; it has the cluster's grace time to save."""
        if not self.job.done():
            self.job.cancel(check=False)

    def kill(self) -> None:
        """Cancel the job."""
        self.terminate()

    def wait(self, timeout: float | None = None) -> None:
        deadline = time.monotonic() + (timeout or 0.0)
        while not self.job.done():
            if timeout is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"job {self.job.job_id}", timeout)
            time.sleep(0.2)


def is_queued(folder: Path) -> bool:
    """Whether a job of this run, submitted by an earlier start, is still queued or running."""
    try:
        job = (folder / JOB).read_text(encoding="utf-8").strip()
        query = ["squeue", "--noheader", "--format=%T", f"--jobs={job}"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and not set(done.stdout.split()) <= OVER


class SlurmLauncher:
    """Jobs of a cluster; all ready runs become one array, of which `jobs` run at once.

    parameters  of submitit's AutoExecutor, as timeout_min, mem_gb, gpus_per_node, slurm_partition; cluster:
                if not slurm
    MachineError if submitit or the cluster is missing; ConfigError if a parameter is unknown, or if a job has
    no time limit.
    """

    takes = MANY

    def __init__(self, folder: Path, jobs: int, parameters: Mapping[str, Any]):
        try:
            import submitit
        except ImportError:
            problem, remedy = "slurm needs submitit, which is not installed", "pip install 'medcl3d[slurm]'"
            raise MachineError("executor", problem, remedy, field="executor") from None
        self.at_once = jobs
        given = dict(parameters)
        cluster = str(given.pop("cluster", "slurm"))
        if not {"timeout_min", "slurm_time"} & set(given):
            problem = f"is missing, and jobs would end after {DEFAULT_MINUTES} minutes"
            remedy = (
                "set the resources of a job, as in `slurm: {timeout_min: 240, gpus_per_node: 1, mem_gb: 32}`"
            )
            raise ConfigError("slurm.timeout_min", None, problem, remedy, colon=False)
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise MachineError("executor", "slurm: sbatch is not installed here", ELSEWHERE, field="executor")
        try:
            self._executor = submitit.AutoExecutor(folder=folder / "slurm" / "%j", cluster=cluster)
        except RuntimeError as error:
            raise MachineError("executor", f"slurm: {error}", ELSEWHERE, field="executor") from None
        if cluster == "slurm":
            more = {"requeue": True, **given.get("slurm_additional_parameters", {})}
            given = {"slurm_array_parallelism": jobs, **given, "slurm_additional_parameters": more}
        try:
            self._executor.update_parameters(name="medcl3d", **given)
        except (NameError, TypeError, ValueError) as error:
            raise ConfigError("slurm", None, " ".join(str(error).split())) from None

    def launch(self, runs: Sequence[Run]) -> list[Child]:
        for run in runs:
            prepare_folder(run)
        with self._executor.batch():
            jobs = [self._executor.submit(RunJob(command_of(run), run.folder.absolute())) for run in runs]
        children: list[Child] = []
        for run, job in zip(runs, jobs, strict=True):
            write_text(run.folder / JOB, f"{job.job_id}\n")
            children.append(SlurmChild(job, run.folder))
        return children

    def busy(self, run: Run) -> bool:
        """Whether a process or a job of another start is executing this run, or is queued."""
        return is_locked(run.folder) or is_queued(run.folder)
