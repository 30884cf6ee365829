"""One loop over scans for a trained network: faulty scans are reported, and the others are processed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from medcl3d.core.errors import DataError, UserError, unexpected_error
from medcl3d.downstream.predict.inputs import InputScan, reason_of
from medcl3d.io.progress import track

T = TypeVar("T")


@dataclass
class ScanLoop:
    """The scans to process, with the faults of those that cannot be.

    scans    those without results of an earlier call
    refused  the faults so far, of scans that cannot be read
    options  options of `prepare` that training has fixed
    trained  what was trained, "run" or "encoder"
    verb     what is done to scans, for messages, such as "segmented"
    report   receives each fault and note
    done     number of processed scans
    """

    scans: Sequence[InputScan]
    refused: list[str]
    options: Mapping[str, Any]
    trained: str
    verb: str
    report: Callable[[str], None]
    done: int = 0

    def report_kept(self, total: int) -> None:
        """Report how many of `total` scans have results of an earlier call."""
        left = len(self.scans)
        if left < total:
            kept = f"{total - left} of {total} scans were {self.verb} by this run before"
            self.report(f"{kept} and are kept; {left} remaining")

    def dry_run(
        self, refuse: Callable[[Path], None], files_of: Callable[[InputScan], Sequence[Path]]
    ) -> None:
        """Report the files that would be written, from headers only. DataError if `refuse` raises it."""
        for one in self.scans:
            try:
                refuse(one.path)
            except DataError as error:
                self._refuse(reason_of(error, self.options, self.trained, one))
            else:
                self.report(f"{one.name} would be written to {' and '.join(map(str, files_of(one)))}")
        total = len(self.scans)
        if self.refused:
            raise DataError(
                f"{len(self.refused)} scans would not be {self.verb}, of {total}: {self.refused[0]}"
            )
        self.report(
            f"{total} scans would be {self.verb}; their headers are valid, voxels were not read; nothing "
            "was written"
        )

    def run(self, compute: Callable[[InputScan], T], write: Callable[[InputScan, T], None]) -> None:
        """Compute and write the result of each scan. DataError, after all scans, if some were refused.

        Errors of `write` end the loop.
        """
        cause: Exception | None = None
        for one in track(self.scans, f"{self.verb.removesuffix('ed')}ing"):
            try:
                result = compute(one)
            except DataError as error:
                self._refuse(reason_of(error, self.options, self.trained, one))
            except UserError:
                raise
            except Exception as error:  # from any library: the other scans are still processed
                cause = error
                self._refuse(unexpected_error(one.shown, error))
            else:
                write(one, result)
                self.done += 1
        if self.refused:
            counts = f"{len(self.refused)} scans were not {self.verb}, {self.done} were"
            raise DataError(counts, self.refused[0]) from cause

    def _refuse(self, reason: str) -> None:
        self.refused.append(reason)
        self.report(reason)
