"""An estimate of the remaining time of a run, from its first steps."""

from __future__ import annotations

import time

from medcl3d.io.progress import duration

UNTIMED = 1
"""First steps that are not timed: they compile, allocate memory and fill the queues of workers."""
TIMED = 3
TIMED_SECONDS = 2.0
"""The least number of timed steps, and the least time that they take."""
LONG = 60.0
"""A shorter remaining time is not reported."""


class TimeEstimate:
    """Times the first steps of a run, and reports once."""

    def __init__(self, first: int, total: int):
        """first: number of steps done before; total: number of all steps."""
        self.total, self._begin = total, first + UNTIMED
        self._since: float | None = None
        self._done = False

    def after(self, step: int) -> str:
        """A line after `step` steps, "" if there is nothing to report."""
        if self._done:
            return ""
        now = time.monotonic()
        if step == self._begin:
            self._since = now
        steps = step - self._begin
        if self._since is None or steps < TIMED or now - self._since < TIMED_SECONDS:
            return ""
        self._done = True
        of_one = (now - self._since) / steps
        left = of_one * (self.total - step)
        if left < LONG:
            return ""
        return f"about {duration(left)} for {self.total - step} steps, from {of_one:.2g} s per step"
