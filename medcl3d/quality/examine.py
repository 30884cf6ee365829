"""Check one scan, as a file or in a store: validity, summary numbers, and a thumbnail."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from medcl3d.core.errors import DataError, UserError, unexpected_error
from medcl3d.datasets.dicom.series import Series, write_series
from medcl3d.preprocessing.intensity_kind import Kind, kind_warnings, label_warnings
from medcl3d.preprocessing.read_scan import Channels, Nonfinite, SkippedScan, Volume, read_image, read_label
from medcl3d.preprocessing.resample import to_ras
from medcl3d.preprocessing.scan_identity import file_state, is_same_file
from medcl3d.quality.thumbnail import STRIDE, thumbnail
from medcl3d.store.content_hashes import OF_SOURCE, hash_voxels
from medcl3d.store.stored_scan import verify_stored

MAX_PICTURES = 300  # per page: some MB, which a browser still opens quickly


@dataclass(frozen=True)
class CheckTask:
    """A scan to check: a row of a manifest with its files, or with a fault that is already known.

    kind     how its intensities would be normalised
    picture  whether to draw a thumbnail, which takes longer than reading a small scan
    series   the DICOM series to read in place of `image`
    """

    scan: str
    patient: str
    image: Path
    label: Path | None
    classes: tuple[int, ...]
    nonfinite: Nonfinite
    channels: Channels
    fault: str = ""
    kind: Kind = "none"
    picture: bool = False
    series: Series | None = None

    @property
    def name(self) -> str:
        """Its name in messages."""
        return str(self.image) if self.series is None else self.series.called or self.scan

    def state(self) -> str:
        """The inputs of a finding: size and time of the files, and the options.

        If only the time differs, the content is not hashed to decide: that decompresses the whole file, which
        is most of the cost of another check (three quarters for a CT of 1.4 million voxels, a third for a
        crop that takes 2 ms).
        """
        files = [file for file in (self.image, self.label) if file is not None]
        # os.path.exists, since Path.exists raises if a folder is not accessible.
        stats = [file.stat() if os.path.exists(file) else None for file in files]
        sizes = [None if s is None else [s.st_size, s.st_mtime_ns] for s in stats]
        options = [self.classes, self.nonfinite, self.channels, self.kind, self.picture]
        state = json.dumps([str(self.image), str(self.label or ""), *options, sizes])
        of = self.series
        return state if of is None else f"{state} {of.pet} {of.tilt} {of.state()}"


@dataclass(frozen=True)
class Finding:
    """The result of checking a scan; an empty fault means that it is valid.

    facts      spacing_mm, shape, intensities, hashes of the content; {} if the file could not be read
    thumbnail  JPEG of three planes as base64; "" if none
    """

    scan: str
    fault: str
    warnings: tuple[str, ...] = ()
    patient: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    thumbnail: str = ""


def examine(task: CheckTask) -> Finding:
    """Read and validate a scan and its label. Faults are returned, not raised."""
    fault, skipped = task.fault, ""
    if not fault:
        try:
            return _finding(task) if task.series is None else _finding_of_series(task, task.series)
        except SkippedScan as error:
            skipped = str(error)
        except DataError as error:
            fault = str(error)
        except UserError:  # an error of the environment, not of the scan
            raise
        except MemoryError:
            fault = f"{task.name}: not enough memory for this scan; use fewer workers"
        except Exception as error:
            fault = unexpected_error(task.name, error)
    return Finding(task.scan, fault, (skipped,) if skipped else (), task.patient)


def _finding_of_series(task: CheckTask, series: Series) -> Finding:
    """Validate a series as the NIfTI file that it becomes, which is temporary."""
    with TemporaryDirectory(prefix="medcl3d-") as folder:
        image = Path(folder) / "series.nii.gz"
        warnings = write_series(series, image)
        found = examine(replace(task, image=image, series=None))
    fault = found.fault.replace(str(image), task.name)
    return replace(found, fault=fault, warnings=(*warnings, *found.warnings))


@dataclass(frozen=True)
class StoredCheckTask:
    """A stored scan to check; `about` is its description."""

    root: Path
    patient: str
    about: dict[str, Any]
    spacing_mm: tuple[float, ...]

    @property
    def scan(self) -> str:
        """Its id."""
        return str(self.about["scan"])


def check_stored_scan(task: StoredCheckTask) -> Finding:
    """Compare a stored scan with its hashes, and its source files with those it was prepared from."""
    about, fault = task.about, ""
    facts = {"shape": about["shape"][1:], "channels": about["shape"][0], "spacing_mm": task.spacing_mm}
    facts |= {name: about[name] for name in OF_SOURCE if name in about}
    try:
        verify_stored(task.root, about)
        fault = _changed(about)
    except DataError as error:
        fault = str(error)
    except UserError:
        raise
    except Exception as error:
        fault = unexpected_error(task.root / task.scan, error)
    return Finding(task.scan, fault, () if fault else tuple(about["warnings"]), task.patient, facts)


def _changed(description: Mapping[str, Any]) -> str:
    """The fault of a source file that changed since; "" if none did.

    Missing files are allowed: stores can be copied alone.
    """
    for name in ("source", "label_source"):
        source = description[name]
        if source and Path(source["path"]).exists():
            try:
                now = file_state(Path(source["path"]))
                is_same = all(now[key] == source[key] for key in ("bytes", "mtime_ns"))
                is_same = is_same or is_same_file(description, name, now)
            except DataError as error:
                return f"{error} (it changed after preparing)"
            if not is_same:
                return f"{source['path']}: changed after preparing; run the same prepare command again"
    return ""


def _finding(task: CheckTask) -> Finding:
    image = read_image(task.image, nonfinite=task.nonfinite, channels=task.channels)
    facts, warnings = _facts(image), [*image.warnings, *label_warnings(image.voxels)]
    warnings += kind_warnings(image.voxels, task.kind)
    label = None
    if task.label is not None:
        label = read_label(task.label, image, task.classes)
        warnings += label.warnings
        facts["classes"] = [int(value) for value in np.unique(label.voxels)]
    picture = thumbnail(image, label) if task.picture else ""
    return Finding(task.scan, "", tuple(warnings), task.patient, facts, picture)


def _facts(image: Volume) -> dict[str, Any]:
    values = image.voxels.ravel()[::STRIDE] if image.voxels.size > 1_000_000 else image.voxels.ravel()
    low, median, high = (float(v) for v in np.percentile(values, (0.5, 50, 99.5)))
    return {
        "shape": list(image.voxels.shape[1:]),
        "channels": len(image.voxels),
        "spacing_mm": [round(float(v), 4) for v in image.spacing_mm],
        "min": float(image.voxels.min()),
        "p0.5": low,
        "median": median,
        "p99.5": high,
        "max": float(image.voxels.max()),
        "sha256": image.sha256,
        "voxels_sha256": hash_voxels(to_ras(image)[0]),
    }
