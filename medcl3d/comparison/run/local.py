"""Runs as processes of this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence

from medcl3d.comparison.plan.runs import Run
from medcl3d.comparison.run.launch import Child, Measured, command_of, prepare_folder, start_process
from medcl3d.comparison.run.lock import is_locked


class LocalLauncher:
    """Processes of this machine, `jobs` at once, which share its processors."""

    def __init__(self, jobs: int):
        self.at_once = self.takes = jobs

    def launch(self, runs: Sequence[Run]) -> list[Child]:
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.at_once))}
        settings = threads if self.at_once > 1 else {}
        children: list[Child] = []
        for run in runs:
            prepare_folder(run)
            children.append(Measured(start_process(command_of(run), run.folder, settings), run.folder))
        return children

    def busy(self, run: Run) -> bool:
        return is_locked(run.folder)
