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


@dataclass(frozen=True)
class Words:
    """The words of a loop's messages, each after a number of scans."""

    title: str
    kept: str
    would: str
    would_not: str
    failed: str
    done: str


@dataclass
class ScanLoop:
    """The scans to process, with the faults of those that cannot be.

    scans    those without results of an earlier call
    refused  the faults so far, of scans that cannot be read
    options  options of `prepare` that training has fixed
    trained  what was trained, "run" or "encoder"
    report   receives each fault and note
    done     number of processed scans
    """

    scans: Sequence[InputScan]
    refused: list[str]
    options: Mapping[str, Any]
    trained: str
    words: Words
    report: Callable[[str], None]
    done: int = 0

    def report_kept(self, total: int) -> None:
        """Report how many of `total` scans have results of an earlier call."""
        left = len(self.scans)
        if left < total:
            self.report(f"{total - left} of {total} scans {self.words.kept} and are kept; {left} remaining")

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
                f"{len(self.refused)} scans would {self.words.would_not}, of {total}: {self.refused[0]}"
            )
        self.report(
            f"{total} scans would {self.words.would}; their headers are valid, voxels were not read; nothing "
            "was written"
        )

    def run(self, compute: Callable[[InputScan], T], write: Callable[[InputScan, T], None]) -> None:
        """Compute and write the result of each scan. DataError, after all scans, if some were refused.

        Errors of `write` end the loop.
        """
        cause: Exception | None = None
        for one in track(self.scans, self.words.title):
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
            words = f"{len(self.refused)} scans {self.words.failed}, {self.done} {self.words.done}"
            raise DataError(words, self.refused[0]) from cause

    def _refuse(self, reason: str) -> None:
        self.refused.append(reason)
        self.report(reason)
