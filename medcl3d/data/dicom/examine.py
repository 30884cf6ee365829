"""A DICOM series looked at as the NIfTI file that it becomes, which is there only meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from medcl3d.data.dicom.series import Series, write_series
from medcl3d.data.examine import Finding, Look, examine
from medcl3d.errors import DataError


@dataclass(frozen=True)
class SeriesLook:
    """What is to be looked at: a scan of a manifest, and the series in the place of its file."""

    look: Look
    series: Series

    @property
    def scan(self) -> str:
        """Its id."""
        return self.look.scan

    @property
    def image(self) -> str:
        """What a message calls it."""
        return self.series.called or self.look.scan

    def state(self) -> str:
        """What a finding depends on: the options, and size and time of the files."""
        return f"{self.look.state()} {self.series.pet} {self.series.tilt} {self.series.state()}"


def with_series(looks: Sequence[Look], series: Mapping[str, Series]) -> list[Look | SeriesLook]:
    """What is to be looked at, with the series of the scans that are some."""
    return [SeriesLook(look, series[look.scan]) if look.scan in series else look for look in looks]


def examine_series(look: Look | SeriesLook) -> Finding:
    """Decode a series and look at it, or at a file. What is wrong is a finding, not an exception."""
    if isinstance(look, Look):
        return examine(look)
    with TemporaryDirectory(prefix="medcl3d-") as folder:  # on the disk for a moment, so that scans are checked in one way
        image = Path(folder) / "series.nii.gz"
        try:
            warnings = write_series(look.series, image)
        except DataError as error:
            return examine(replace(look.look, fault=str(error)))
        found = examine(replace(look.look, image=image))
    fault = found.fault.replace(str(image), look.image)
    return replace(found, fault=fault, warnings="; ".join(filter(None, (*warnings, found.warnings))))
