"""One scan looked at, as a file or in a store: whether it is what it says, and the few numbers and the picture that tell it from others."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medcl3d.data.check import Channels, Nonfinite, SkippedScan, Volume, read_image, read_label
from medcl3d.data.content import OF_SOURCE, hash_of_voxels
from medcl3d.data.grid import turned
from medcl3d.data.intensity import Kind, like_a_label, unlike_its_kind
from medcl3d.data.scan import file_state, is_same_file
from medcl3d.data.stored import verify_stored
from medcl3d.errors import DataError, MachineError, unforeseen

THUMBNAIL = 56  # pixels along the longer side of a plane
MAX_PICTURES = 300  # that a page shows: some MB, which a browser still opens at once
STRIDE = 7  # of the voxels that percentiles are taken from


@dataclass(frozen=True)
class Look:
    """What is to be looked at: a row of a manifest, its files found, or a fault that is known already.

    kind     as what its intensities would be taken
    picture  whether it is to be drawn, which takes longer than reading a small scan
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

    def state(self) -> str:
        """What a finding depends on: size and time of the files, and the options.

        No hash of the content decides where only the time differs: to hash a file is to inflate it to its end, which is most of
        what looking again costs (three quarters for a CT of 1.4 million voxels, a third for a crop in which all costs 2 ms).
        """
        files = [file for file in (self.image, self.label) if file is not None]
        stats = [file.stat() if os.path.exists(file) else None for file in files]  # not Path's, which raises where it may not look
        sizes = [None if s is None else [s.st_size, s.st_mtime_ns] for s in stats]
        about = [str(self.image), str(self.label or ""), self.classes, self.nonfinite, self.channels, self.kind, self.picture, sizes]
        return json.dumps(about)


@dataclass(frozen=True)
class Finding:
    """What was found of one scan, or of a stored one: an empty fault means that all is well.

    facts      spacing_mm, shape, intensities, hashes of the content; {} where the file could not be read
    thumbnail  PNG of the three middle planes as base64, "" where there is none
    """

    scan: str
    fault: str
    warnings: tuple[str, ...] = ()
    patient: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    thumbnail: str = ""


def examine(look: Look) -> Finding:
    """Read a scan and its label. What is wrong with them is a finding, not an exception."""
    fault, skipped = look.fault, ""
    if not fault:
        try:
            return _found(look)
        except SkippedScan as error:
            skipped = str(error)
        except DataError as error:
            fault = str(error)
        except MemoryError:
            fault = f"{look.image}: not enough memory for this scan; use fewer workers"
        except Exception as error:
            fault = unforeseen(look.image, error)
    return Finding(look.scan, fault, (skipped,) if skipped else (), look.patient)


@dataclass(frozen=True)
class StoredLook:
    """What is to be looked at of a store: a scan, by its description `about`."""

    root: Path
    patient: str
    about: dict[str, Any]
    spacing_mm: tuple[float, ...]


def examine_stored(look: StoredLook) -> Finding:
    """Hold the voxels of a stored scan against their hashes, and its source files against what they were."""
    about, fault = look.about, ""
    facts = {"shape": about["shape"][1:], "channels": about["shape"][0], "spacing_mm": look.spacing_mm}
    facts |= {name: about[name] for name in OF_SOURCE if name in about}
    try:
        verify_stored(look.root, about)
        fault = _changed(about)
    except DataError as error:
        fault = str(error)
    except MachineError:
        raise
    except Exception as error:
        fault = unforeseen(look.root / about["scan"], error)
    return Finding(about["scan"], fault, () if fault else tuple(about["warnings"]), look.patient, facts)


def _changed(description: Mapping[str, Any]) -> str:
    """What became of the source files since; a store may travel without them, so a missing one is no fault."""
    for name in ("source", "label_source"):
        source = description[name]
        if source and Path(source["path"]).exists():
            try:
                now = file_state(Path(source["path"]))
                is_same = all(now[of] == source[of] for of in ("bytes", "mtime_ns")) or is_same_file(description, name, now)
            except DataError as error:
                return f"{error} (it changed after preparing)"
            if not is_same:
                return f"{source['path']}: changed after preparing; run the same prepare command again"
    return ""


def _found(look: Look) -> Finding:
    image = read_image(look.image, nonfinite=look.nonfinite, channels=look.channels)
    facts, warnings = _facts(image), [*image.warnings, *like_a_label(image.voxels)]
    warnings += unlike_its_kind(image.voxels, look.kind)
    if look.label is not None:
        label = read_label(look.label, image, look.classes)
        warnings += label.warnings
        facts["classes"] = [int(value) for value in np.unique(label.voxels)]
    return Finding(look.scan, "", tuple(warnings), look.patient, facts, _thumbnail(image) if look.picture else "")


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
        "voxels_sha256": hash_of_voxels(turned(image)[0]),
    }


def _thumbnail(image: Volume) -> str:
    """The middle planes of the first channel, dark to bright between robust extremes, physical proportions."""
    from matplotlib.image import imsave
    from skimage.transform import resize

    voxels = image.voxels[0]
    low, high = np.percentile(voxels.ravel()[::STRIDE], (0.5, 99.5))
    planes = []
    for axis in range(3):
        plane = np.take(voxels, voxels.shape[axis] // 2, axis).T[::-1]
        spacing = np.delete(image.spacing_mm, axis)[::-1]
        size = np.array(plane.shape) * spacing
        height, width = (max(1, round(float(n))) for n in size * THUMBNAIL / size.max())
        grey = np.clip((plane - low) / max(float(high - low), 1e-12), 0, 1)
        small = resize(grey, (height, width), order=1, anti_aliasing=True)
        planes.append(np.pad(small, ((0, THUMBNAIL - height), (0, 2))))
    buffer = io.BytesIO()
    imsave(buffer, np.concatenate(planes, axis=1), format="png", cmap="gray", vmin=0, vmax=1)
    return base64.b64encode(buffer.getvalue()).decode()
