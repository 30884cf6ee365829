"""Prepare one scan: validate, reorient to RAS+, resample, normalise, write."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medcl3d.core.body_coordinates import middle_of_body
from medcl3d.core.errors import ConfigError, DataError, UserError, unforeseen
from medcl3d.datasets.scan_ids import file_stem
from medcl3d.io.array_file import SUFFIXES, Container, write_array
from medcl3d.io.atomic import write_json
from medcl3d.io.nifti import content_sha256
from medcl3d.io.nifti_header import spacing_warnings
from medcl3d.io.regular_file import open_regular, why_absent
from medcl3d.preprocessing.normalise import Body, Kind, Normalisation, find_body, kind_warnings, label_warnings, mask_levels, normalise
from medcl3d.preprocessing.read_scan import Channels, Nonfinite, SkippedScan, Volume, read_image, read_label, volume_hash
from medcl3d.preprocessing.resample import LabelInterpolation, refuse_too_large, resampled, resampled_label, respaced, to_ras
from medcl3d.store.content_hashes import hash_voxels
from medcl3d.store.quantise import Scaling, StoreAs, pack, unpack

SCHEMA = 2
# File -> key of its hash in a description.
CONTENT = {"source": "sha256", "label_source": "label_source_sha256"}

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
        tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
        fields: dict[str, Any] = tuples
        try:
            return ScanTask(scan=scan, image=image, label=None, atlas=None, **fields)
        except TypeError as error:
            raise ConfigError(
                f"{scan}: cannot be prepared like the training scans ({error}); update medcl3d"
            ) from None

    def options(self) -> dict[str, Any]:
        """The options that determine the stored voxels, besides the files."""
        options = asdict(self)
        for name in ("scan", "image", "label", "atlas", "store", "volume"):
            del options[name]
        return json.loads(json.dumps(options))


@dataclass(frozen=True)
class Outcome:
    """The result of preparing a scan: ok, refused or skipped, and why; `was_there`: it was stored before."""

    scan: str
    status: str
    reason: str
    warnings: tuple[str, ...]
    was_there: bool = False


def stored_names(scan: str, store: Container = "npy") -> tuple[str, str, str]:
    """File names of a scan's voxels, label and description; an id may contain any character."""
    name = file_stem(scan)
    return f"{name}{SUFFIXES[store]}", f"{name}.label{SUFFIXES[store]}", f"{name}.json"


def prepare_scan(task: ScanTask, store: Path) -> Outcome:
    """Prepare one scan, unless it is already stored.

    Faults of its files are returned as an outcome, not raised.
    """
    try:
        identity = _identity(task)
        stored = _described(task, store)
        if stored is not None and _is_current(stored, identity):
            if {
                name: stored.get(name) for name in identity
            } != identity:  # so that no file is hashed next time
                write_json(store / stored_names(task.scan)[2], {**stored, **identity})
            return Outcome(task.scan, "ok", "", tuple(stored["warnings"]), was_there=True)
        return Outcome(task.scan, "ok", "", _prepare(task, store, identity))
    except SkippedScan as error:
        status, reason = "skipped", str(error)
    except DataError as error:
        status, reason = "refused", str(error)
    except MemoryError:
        remedy = "use fewer workers, or a coarser spacing_mm"
        status, reason = "refused", f"{task.image}: not enough memory for this scan; {remedy}"
    except Exception as error:
        if isinstance(error, UserError) or _is_in_store(
            store, error
        ):  # a full disk affects all other scans too
            raise
        status, reason = "refused", unforeseen(task.image, error)
    (store / stored_names(task.scan)[2]).unlink(missing_ok=True)
    return Outcome(task.scan, status, reason, ())


def _is_current(stored: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Whether a stored scan was prepared from the same content with the same options."""
    return all(
        stored.get(name) == value or is_same_file(stored, name, value) for name, value in identity.items()
    )


def _is_in_store(store: Path, error: Exception) -> bool:
    """Whether an OSError names a file in the store, not one of the scan's."""
    if not isinstance(error, OSError) or error.filename is None:
        return False
    return Path(str(error.filename)).is_relative_to(store)


def file_state(path: Path) -> dict[str, Any]:
    """Path, size and time of a file. DataError if it does not exist."""
    try:
        status = path.stat()
    except OSError as error:
        reason = why_absent(path) if isinstance(error, FileNotFoundError) else error.strerror
        raise DataError(f"{path}: {reason}") from None
    return {"path": os.path.abspath(path), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def is_same_file(description: Mapping[str, Any], name: str, now: Any) -> bool:
    """Whether a file that was moved, copied or touched has the same content as the one in a description.

    name  source, or label_source
    now   `file_state` of the file
    """
    before, digest = description.get(name), description.get(CONTENT.get(name, ""))
    if not (before and digest and now):
        return False
    volume = description.get("volume") if name == "source" else None
    return bool(
        before["bytes"] == now["bytes"] and volume_hash(content_sha256(Path(now["path"])), volume) == digest
    )


def _identity(task: ScanTask) -> dict[str, Any]:
    """Size and time of the files, the options and the container; a stored scan is current if none changed."""
    files = {"source": task.image, "label_source": task.label, "atlas_source": task.atlas}
    found = {name: file_state(path) if path else None for name, path in files.items()}
    how = {"volume": task.volume, "options": task.options(), "store": task.store}
    return {"schema": SCHEMA, "scan": task.scan, **found, **how}


def _described(task: ScanTask, store: Path) -> dict[str, Any] | None:
    """The description of a stored scan, or None if its files are missing or incomplete."""
    image, label, description = (store / name for name in stored_names(task.scan, task.store))
    try:
        found = json.loads(description.read_text())
        is_whole = image.stat().st_size == found["stored_bytes"]
        is_whole = is_whole and (task.label is None or label.stat().st_size == found["label_bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return {"store": "npy", **found} if is_whole else None  # older descriptions do not name the container


@dataclass(frozen=True)
class ReadyScan:
    """A scan in the form of the store.

    image       the volume of the file, on its own grid
    own_affine  ``Float64[4, 4]`` index of that grid -> RAS+ mm, with the assumed voxel size, if any
    stored      ``[C, D, H, W]`` reoriented, resampled, cropped, normalised and packed; `voxels` unpacks them
    affine      ``Float64[4, 4]`` index of `stored` -> RAS+ mm
    window      the part of the reoriented and resampled volume that is stored
    """

    image: Volume
    own_affine: np.ndarray
    stored: np.ndarray
    scaling: Scaling
    affine: np.ndarray
    window: tuple[slice, slice, slice]
    body: Body
    normalisation: Normalisation
    warnings: tuple[str, ...]

    @property
    def voxels(self) -> np.ndarray:
        """``Float32[C, D, H, W]``, the input of a network."""
        return unpack(self.stored, self.scaling)


def ready_scan(task: ScanTask) -> ReadyScan:
    """Validate one scan and convert it to the form of the store, without writing it.

    DataError, SkippedScan.
    """
    image = read_image(task.image, nonfinite=task.nonfinite, channels=task.channels, volume=task.volume)
    own_affine = image.affine if task.assume_spacing_mm is None else respaced(image, task.assume_spacing_mm)
    if task.spacing_mm is not None:
        refuse_too_large(task.image, image.voxels.shape, own_affine, task.spacing_mm)
    voxels, affine = resampled(replace(image, affine=own_affine), task.spacing_mm)
    levels = [mask_levels(channel, task.kind) for channel in image.voxels]
    body = find_body(voxels, "none" if all(levels) else task.kind)
    window = (slice(None), slice(None), slice(None))
    if task.crop == "body":
        voxels, affine, body, window = _cropped(voxels, affine, body)
    limits: dict[str, Any] = {"percentiles": task.percentiles, "window_hu": task.window_hu}
    voxels, normalisation = normalise(voxels, task.kind, body, levels=levels, **limits)
    remedy = "use store_as=int16" + (" or intensity=mri" if task.kind == "none" else "")
    stored, scaling = pack(voxels, task.store_as, task.image, remedy)
    _refuse_constant(task, stored)
    warnings = [*_header_warnings(image, own_affine), *kind_warnings(image.voxels, task.kind)]
    if task.kind != "none":  # unchanged values may be shapes
        warnings += label_warnings(image.voxels)
    if (
        task.store_as == "float16"
        and np.array_equal(np.round(voxels), voxels)
        and not np.array_equal(stored, voxels)
    ):
        warnings.append("whole numbers were rounded by float16; store_as int16 keeps them")
    return ReadyScan(image, own_affine, stored, scaling, affine, window, body, normalisation, tuple(warnings))


def _header_warnings(image: Volume, own_affine: np.ndarray) -> list[str]:
    """Warnings of a file; those of its voxel size only if no other is assumed."""
    if own_affine is image.affine:
        return list(image.warnings)
    settled = spacing_warnings(image.affine)
    return [*(warning for warning in image.warnings if warning not in settled), *spacing_warnings(own_affine)]


def _refuse_constant(task: ScanTask, stored: np.ndarray) -> None:
    """DataError if a channel of ``[C, D, H, W]`` became constant in preparation."""
    bits = stored.reshape(len(stored), -1).view(np.uint16)
    for channel in np.flatnonzero((bits == bits[:, :1]).all(axis=1)):
        what = f"{task.image}: no image is left: every voxel of channel {channel} has the same value"
        if task.kind == "ct":
            low, high = task.window_hu
            raise DataError(
                f"{what} in the window from {low:g} to {high:g} HU; "
                "set window_hu, or intensity if this is not CT in HU"
            )
        size = "x".join(map(str, stored.shape[1:]))
        finer = ["a finer spacing_mm"] if task.spacing_mm is not None else []
        finer += ["store_as=int16"] if task.store_as == "float16" else []
        remedy = f"try {' or '.join(finer)}" if finer else "leave the scan out"
        raise DataError(f"{what} in {size} voxels as {task.store_as}; {remedy}")


def _cropped(
    voxels: np.ndarray, affine: np.ndarray, body: Body
) -> tuple[np.ndarray, np.ndarray, Body, tuple[slice, slice, slice]]:
    """Crop voxels, affine and body mask to the body's box; also returns the box as slices."""
    start, stop = body.box
    d, h, w = (slice(a, b) for a, b in zip(start, stop, strict=True))
    moved = affine.copy()
    moved[:3, 3] = affine[:3, :3] @ np.array(start) + affine[:3, 3]
    size = tuple(b - a for a, b in zip(start, stop, strict=True))
    mask = None if body.mask is None else body.mask[d, h, w]
    return (
        np.ascontiguousarray(voxels[:, d, h, w]),
        moved,
        Body(((0, 0, 0), size), body.method, mask),
        (d, h, w),
    )


def _prepare(task: ScanTask, store: Path, identity: dict[str, Any]) -> tuple[str, ...]:
    ready = ready_scan(task)
    image, body = ready.image, ready.body
    label = read_label(task.label, image, task.classes) if task.label else None
    names = [store / name for name in stored_names(task.scan, task.store)]
    names[2].unlink(missing_ok=True)  # the scan counts as missing until the new description is written
    description: dict[str, Any] = {
        **identity,
        "sha256": image.sha256,
        "voxels_sha256": hash_voxels(to_ras(image)[0]),
        "shape": list(ready.stored.shape),
        "scaling": ready.scaling,
        "affine": ready.affine.tolist(),
        "body": {
            "box": body.box,
            "method": body.method,
            "fraction": body.fraction,
            "from_world": _from_world(task, ready.affine, body.box),
        },
        "normalisation": asdict(ready.normalisation),
        "source_spacing_mm": np.linalg.norm(ready.own_affine[:3, :3], axis=0).tolist(),
        "source_shape": list(image.voxels.shape[1:]),
        "source_affine": ready.own_affine.tolist(),
        "num_nonfinite": image.num_nonfinite,
        "warnings": [*ready.warnings, *(label.warnings if label else ())],
    }
    description["stored_sha256"], description["stored_bytes"] = write_array(names[0], ready.stored)
    if label is not None:
        description[CONTENT["label_source"]] = label.sha256
        whole = resampled_label(
            replace(label, affine=ready.own_affine), task.spacing_mm, task.label_interpolation
        )
        classes = np.ascontiguousarray(whole[ready.window])
        lost = int(np.count_nonzero(whole) - np.count_nonzero(classes))
        if lost:
            description["warnings"].append(
                f"{lost} labelled voxels are outside the body and were cropped off"
            )
        description["label_sha256"], description["label_bytes"] = write_array(names[1], classes)
        values, counts = np.unique(classes, return_counts=True)
        description["class_voxels"] = {str(v): int(n) for v, n in zip(values, counts, strict=True)}
    write_json(names[2], description)
    return tuple(description["warnings"])


def _from_world(task: ScanTask, affine: np.ndarray, body_box: Any) -> list[list[float]]:
    """World mm -> body mm: to the atlas if the manifest names an affine, else from the middle of the body."""
    from_world = middle_of_body(affine, np.array(body_box)) if task.atlas is None else read_affine(task.atlas)
    return from_world.tolist()


def read_affine(path: Path) -> np.ndarray:
    """``Float64[4, 4]`` from four lines of four numbers.

    DataError if it is not an invertible affine from mm to mm.
    """
    what = "an affine from world mm to atlas mm (both RAS+) is four lines of four numbers, the last 0 0 0 1"
    try:
        with os.fdopen(open_regular(path), encoding="utf-8") as text:
            affine = np.loadtxt(text, dtype=np.float64)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}; {what}") from None
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.allclose(affine[3], [0, 0, 0, 1]):
        raise DataError(f"{path}: contains {affine.shape} numbers; {what}")
    if abs(np.linalg.det(affine[:3, :3])) < 1e-3:
        raise DataError(f"{path}: the affine is singular: it maps the body onto a plane; {what}")
    return affine
