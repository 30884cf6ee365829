"""One row of the table of drills: a fault of a running training, and how it must end."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.drills.place import EXACT, Outcome, Place


@dataclass(frozen=True)
class Drill:
    """A fault of a run and its expected end.

    number      in the list of faults that medcl3d handles; None if it is not in the list
    what        short description
    cause       causes the fault in a new place, and resumes the run
    codes       exit codes of the processes, in their order
    texts       what their messages must contain
    state       of the run, as `medcl3d status` shows it after the fault
    recovered   whether the run then ended as one without a fault; a pattern
    namespaces  whether it needs root on Linux, for a private disk or network
    """

    number: int | None
    what: str
    cause: Callable[[Place], Outcome]
    codes: Sequence[int]
    texts: Sequence[str]
    state: str
    recovered: str = EXACT
    namespaces: bool = False

    @property
    def name(self) -> str:
        """The name of the test case."""
        return f"{self.number or 'more'}-{self.what.replace(' ', '_')}"

    def mistakes(self, outcome: Outcome) -> list[str]:
        """How an outcome differs from the expected one."""
        found = [f"no {text!r}" for text in self.texts if text not in outcome.output]
        if "Traceback" in outcome.output:
            found.append("a traceback")
        if outcome.codes != tuple(self.codes):
            found.append(f"exit codes {outcome.codes}")
        if outcome.state != self.state:
            found.append(f"state {outcome.state}")
        if not re.fullmatch(self.recovered, outcome.recovered):
            found.append(f"recovered: {outcome.recovered}")
        return found
