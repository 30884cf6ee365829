"""Validation of a DICOM series as the NIfTI file that it becomes; the file is temporary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from medcl3d.core.errors import DataError, UserError, unexpected_error
from medcl3d.datasets.dicom.series import Series, write_series
from medcl3d.quality.examine import CheckTask, Finding, examine


@dataclass(frozen=True)
class SeriesCheck:
    """A scan of a manifest to validate, with the series that replaces its file."""

    task: CheckTask
    series: Series

    @property
    def scan(self) -> str:
        """Its id."""
        return self.task.scan

    @property
    def image(self) -> str:
        """Its name in messages."""
        return self.series.called or self.task.scan

    def state(self) -> str:
        """Everything that a finding depends on: the options, and size and time of the files."""
        return f"{self.task.state()} {self.series.pet} {self.series.tilt} {self.series.state()}"


def with_series(tasks: Sequence[CheckTask], series: Mapping[str, Series]) -> list[CheckTask | SeriesCheck]:
    """The scans to validate, with the series of those that have one."""
    return [SeriesCheck(task, series[task.scan]) if task.scan in series else task for task in tasks]


def check_series(task: CheckTask | SeriesCheck) -> Finding:
    """Decode and validate a series, or validate a file. Faults are findings, not exceptions."""
    if isinstance(task, CheckTask):
        return examine(task)
    # Temporary file, so that all scans are validated in the same way.
    with TemporaryDirectory(prefix="medcl3d-") as folder:
        image = Path(folder) / "series.nii.gz"
        try:
            warnings = write_series(task.series, image)
        except DataError as error:
            return examine(replace(task.task, fault=str(error)))
        except UserError:  # an error of the environment, not of the series
            raise
        except Exception as error:
            return examine(replace(task.task, fault=unexpected_error(task.image, error)))
        found = examine(replace(task.task, image=image))
    fault = found.fault.replace(str(image), task.image)
    return replace(found, fault=fault, warnings=(*warnings, *found.warnings))
