"""The progress of training: time per step, a bar or lines of text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import MofNCompleteColumn, TextColumn

from medcl3d.distributed.collectives import rank
from medcl3d.io.progress import progress_bar
from medcl3d.training.time_estimate import TimeEstimate


class StepClock:
    """The time since the last logged step, and the part of it that was spent waiting for batches."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._steps, self._waited, self._since = 0, 0.0, time.monotonic()

    def next_of(self, stream: Iterator[Any]) -> Any:
        requested = time.monotonic()
        batch = next(stream)
        self._waited += time.monotonic() - requested
        self._steps += 1
        return batch

    def rates(self) -> tuple[float, float]:
        """Steps per second since the last restart, and the fraction of time spent waiting."""
        seconds = max(time.monotonic() - self._since, 1e-9)
        return self._steps / seconds, self._waited / seconds


@contextmanager
def progress_of_steps(title: str, done: int, total: int) -> Iterator[Callable[[int, float], None]]:
    """A progress bar on rank 0, or about ten lines of text if stderr is not a terminal; a time estimate."""
    bar = progress_bar(MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.4f}"), shown=rank() == 0)
    task = bar.add_task(title, total=total, completed=done, loss=float("nan"))
    stride, estimate = max(1, total // 10), TimeEstimate(done, total)

    def advance(step: int, loss: float) -> None:
        if rank() == 0 and (line := estimate.after(step)):
            bar.console.print(f"{title}: {line}", highlight=False)
        if bar.console.is_terminal:
            bar.update(task, completed=step, loss=loss)
        elif rank() == 0 and (step % stride == 0 or step == total):
            text = f"{title}: step {step} of {total}, loss {loss:.4f}"
            bar.console.print(text, highlight=False)

    with bar:
        yield advance
