"""A scan prepared as those that a network was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medcl3d.core.errors import ConfigError, DataError, Word
from medcl3d.io.nifti import read_header
from medcl3d.preprocessing.read_scan import num_channels
from medcl3d.preprocessing.ready_scan import ReadyScan, ready_scan
from medcl3d.preprocessing.scan_task import ScanTask

SPACING_TOLERANCE = 0.25  # relative difference of voxel size from training that gives a warning
Trained = Literal["network", "encoder"]


def intensity_kind(source: Path, trained: str, wanted: str | None, field: str) -> str:
    """The intensity normalisation of scans: mri, ct or none.

    source   what was trained, for messages; trained: its kinds, joined by +
    field    where `wanted` is set: an option (``--intensity``), or an argument

    ConfigError if `wanted` is not one of the kinds, or is missing if there are several.
    """
    kinds = trained.split("+")
    if wanted is None and len(kinds) > 1:
        example = f"{field} {kinds[0]}" if field.startswith("-") else f"{field} = {kinds[0]}"
        problem = f"trained on intensities of kinds {trained}"
        remedy = f"set that of these scans, as {example}"
        raise ConfigError(problem=problem, remedy=remedy, place=source)
    if wanted is not None and wanted not in kinds:
        raise ConfigError(
            field, Word(wanted), f"{source} was trained on {trained}", f"use {' or '.join(kinds)}"
        )
    return wanted or kinds[0]


def prepared(path: Path, options: Mapping[str, Any], channels: int, trained: Trained) -> ReadyScan:
    """A scan prepared with the options of training. DataError if it is not a scan of `channels` channels."""
    ready = ready_scan(ScanTask.like(options, path.name, path))
    _refuse_channels(path, len(ready.stored), channels, trained)
    return ready


def refuse_header(path: Path, options: Mapping[str, Any], channels: int, trained: Trained) -> None:
    """DataError if the header of a file is not that of a scan of `channels` channels."""
    found = num_channels(path, read_header(path).shape, options["channels"])
    _refuse_channels(path, found, channels, trained)


def _refuse_channels(path: Path, found: int, channels: int, trained: Trained) -> None:
    if found != channels:
        raise DataError(path, f"has {found} channels, the {trained} takes {channels}")


def other_spacing(ready: ReadyScan, trained_mm: Sequence[float]) -> tuple[str, str] | None:
    """The voxel sizes of a scan and of training in mm, if they differ by more than a quarter."""
    spacing = np.linalg.norm(ready.affine[:3, :3], axis=0)
    if np.allclose(spacing, trained_mm, rtol=SPACING_TOLERANCE):
        return None
    scanned, trained = (", ".join(f"{v:.3g}" for v in values) for values in (spacing, trained_mm))
    return scanned, trained


def identity_of(weights: Path, *settings: object) -> str:
    """SHA-256 of weights and their sidecar, and the settings that results depend on."""
    content = weights.read_bytes() + weights.with_suffix(".json").read_bytes()
    return " ".join(map(str, (hashlib.sha256(content).hexdigest(), *settings)))
