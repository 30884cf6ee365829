"""Validation of a DICOM series as the NIfTI file that it becomes; the file is temporary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from medcl3d.core.errors import DataError, UserError, unexpected_error
from medcl3d.datasets.dicom.series import Series, write_series
from medcl3d.quality.examine import Finding, Look, examine


@dataclass(frozen=True)
class SeriesCheck:
    """A scan of a manifest to validate, with the series that replaces its file."""

    look: Look
    series: Series

    @property
    def scan(self) -> str:
        """Its id."""
        return self.look.scan

    @property
    def image(self) -> str:
        """Its name in messages."""
        return self.series.called or self.look.scan

    def state(self) -> str:
        """Everything that a finding depends on: the options, and size and time of the files."""
        return f"{self.look.state()} {self.series.pet} {self.series.tilt} {self.series.state()}"


def with_series(looks: Sequence[Look], series: Mapping[str, Series]) -> list[Look | SeriesCheck]:
    """The scans to validate, with the series of those that have one."""
    return [SeriesCheck(look, series[look.scan]) if look.scan in series else look for look in looks]


def check_series(look: Look | SeriesCheck) -> Finding:
    """Decode and validate a series, or validate a file. Faults are findings, not exceptions."""
    if isinstance(look, Look):
        return examine(look)
    # Temporary file, so that all scans are validated in the same way.
    with TemporaryDirectory(prefix="medcl3d-") as folder:
        image = Path(folder) / "series.nii.gz"
        try:
            warnings = write_series(look.series, image)
        except DataError as error:
            return examine(replace(look.look, fault=str(error)))
        except UserError:  # an error of the environment, not of the series
            raise
        except Exception as error:
            return examine(replace(look.look, fault=unexpected_error(look.image, error)))
        found = examine(replace(look.look, image=image))
    fault = found.fault.replace(str(image), look.image)
    return replace(found, fault=fault, warnings=(*warnings, *found.warnings))
