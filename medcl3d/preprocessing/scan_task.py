"""One scan to prepare, and its outcome."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from medcl3d.core.errors import ConfigError
from medcl3d.io.array_file import Container
from medcl3d.preprocessing.intensity_kind import Kind
from medcl3d.preprocessing.read_scan import Channels, Nonfinite
from medcl3d.preprocessing.resample import LabelInterpolation
from medcl3d.store.quantise import StoreAs

Crop = Literal["none", "body"]


@dataclass(frozen=True)
class ScanTask:
    """The inputs and options to prepare one scan; `volume` is its number in a file of several volumes."""

    scan: str
    image: Path
    label: Path | None
    atlas: Path | None
    kind: Kind
    classes: tuple[int, ...]
    assume_spacing_mm: tuple[float, float, float] | None
    spacing_mm: tuple[float, float, float] | None
    nonfinite: Nonfinite
    channels: Channels
    percentiles: tuple[float, float]
    window_hu: tuple[float, float]
    value_range: tuple[float, float] | None = None
    crop: Crop = "none"
    label_interpolation: LabelInterpolation = "nearest"
    store_as: StoreAs = "float16"
    store: Container = "npy"
    volume: int | None = None

    @staticmethod
    def like(options: Mapping[str, Any], scan: str, image: Path) -> ScanTask:
        """A task with the options of a store (or a model's sidecar).

        ConfigError if this version lacks one.
        """
        fields: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in options.items()}
        try:
            return ScanTask(scan=scan, image=image, label=None, atlas=None, **fields)
        except TypeError as error:
            problem = f"cannot be prepared like the training scans ({error})"
            raise ConfigError(problem=problem, remedy="update medcl3d", place=scan) from None

    def options(self) -> dict[str, Any]:
        """The options that determine the stored voxels, besides the files."""
        options = asdict(self)
        for name in ("scan", "image", "label", "atlas", "store", "volume"):
            del options[name]
        if self.value_range is None:  # as stores of earlier versions
            del options["value_range"]
        return json.loads(json.dumps(options))


@dataclass(frozen=True)
class Outcome:
    """The result of preparing a scan: ok, refused or skipped, and why. `was_unchanged`: stored before."""

    scan: str
    status: str
    reason: str
    warnings: tuple[str, ...]
    was_unchanged: bool = False
