"""Runs as processes of this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence

from medcl3d.comparison.plan.runs import Run
from medcl3d.comparison.run.launch import Child, Measured, command_of, prepare_folder, start_process
from medcl3d.comparison.run.lock import is_locked


class LocalChild:
    """A run as a process of this machine."""

    resumable = False

    def __init__(self, run: Run, jobs: int):
        prepare_folder(run)
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}
        self.run = run
        self._measured = Measured(start_process(command_of(run), run.folder, threads), run.folder)
        self.started = self._measured.started

    def poll(self) -> int | None:
        return self._measured.poll()

    def terminate(self) -> None:
        """Send SIGTERM: the run saves its state."""
        if self.poll() is None:
            self._measured.process.terminate()

    def kill(self) -> None:
        if self.poll() is None:
            self._measured.process.kill()

    def wait(self, timeout: float | None = None) -> None:
        self._measured.wait(timeout)


class LocalLauncher:
    """Processes of this machine, `jobs` at once, which share its processors."""

    def __init__(self, jobs: int):
        self.at_once = self.takes = jobs

    def launch(self, runs: Sequence[Run]) -> list[Child]:
        return [LocalChild(run, self.at_once) for run in runs]

    def busy(self, run: Run) -> bool:
        return is_locked(run.folder)
