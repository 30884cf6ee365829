"""One scan on its way into the store: checked, turned to RAS+, resampled, normalised, written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nibabel
import numpy as np

from medcl3d.data.atomic import replacing, write_json
from medcl3d.data.check import Channels, Nonfinite, SkippedScan, Volume, read_image, read_label
from medcl3d.data.intensity import Kind, find_body, normalise
from medcl3d.errors import DataError
from medcl3d.pairs.body_coordinates import middle_of_body

SCHEMA = 2


@dataclass(frozen=True)
class ScanTask:
    """All that a worker needs to prepare one scan."""

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

    def options(self) -> dict[str, Any]:
        """What the stored voxels depend on, beside the files."""
        wanted = asdict(self)
        for name in ("scan", "image", "label", "atlas"):
            del wanted[name]
        return json.loads(json.dumps(wanted))


@dataclass(frozen=True)
class Outcome:
    """What became of a scan: ok, refused or skipped, and why."""

    scan: str
    status: str
    reason: str
    warnings: tuple[str, ...]
    was_there: bool = False


def stored_names(scan: str) -> tuple[str, str, str]:
    """File names of a scan's voxels, label and description; an id may hold any character."""
    name = quote(scan, safe=" +=@,")
    return f"{name}.npy", f"{name}.label.npy", f"{name}.json"


def prepare_scan(task: ScanTask, store: Path) -> Outcome:
    """Prepare one scan, unless it is there already. What is wrong with its files is an outcome, not an exception."""
    try:
        wanted = _identity(task)
        there = _described(task, store)
        if there is not None and {k: there.get(k) for k in wanted} == wanted:
            return Outcome(task.scan, "ok", "", tuple(there["warnings"]), was_there=True)
        return Outcome(task.scan, "ok", "", _prepare(task, store, wanted))
    except SkippedScan as error:
        status, reason = "skipped", str(error)
    except DataError as error:
        status, reason = "refused", str(error)
    except MemoryError:
        status, reason = "refused", f"{task.image}: not enough memory for this scan; use fewer workers, or a coarser spacing_mm"
    (store / stored_names(task.scan)[2]).unlink(missing_ok=True)
    return Outcome(task.scan, status, reason, ())


def _identity(task: ScanTask) -> dict[str, Any]:
    """Size and time of the files, and the options: what makes a stored scan still the right one."""

    def of(path: Path) -> dict[str, Any]:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(
                f"{path}: there is no such file" if isinstance(error, FileNotFoundError) else f"{path}: {error.strerror}"
            ) from None
        return {"path": str(path), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}

    files = {"source": task.image, "label_source": task.label, "atlas_source": task.atlas}
    found = {name: of(path) if path else None for name, path in files.items()}
    return {"schema": SCHEMA, "scan": task.scan, **found, "options": task.options()}


def _described(task: ScanTask, store: Path) -> dict[str, Any] | None:
    """The description of a stored scan whose files are whole, or None."""
    image, label, description = (store / name for name in stored_names(task.scan))
    try:
        found = json.loads(description.read_text())
        whole = image.stat().st_size == found["stored_bytes"] and (task.label is None or label.stat().st_size == found["label_bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if whole else None


def _prepare(task: ScanTask, store: Path, identity: dict[str, Any]) -> tuple[str, ...]:
    image = read_image(task.image, nonfinite=task.nonfinite, channels=task.channels)
    label = read_label(task.label, image, task.classes) if task.label else None
    if task.assume_spacing_mm is not None:
        image = _respaced(image, task.assume_spacing_mm)
        label = _respaced(label, task.assume_spacing_mm) if label else None
    voxels, affine = _on_grid(image, task.spacing_mm, is_label=False)
    body = find_body(voxels, task.kind)
    voxels, normalisation = normalise(voxels, task.kind, body, percentiles=task.percentiles, window_hu=task.window_hu)
    stored = voxels.astype(np.float16)
    if not np.isfinite(stored).all():
        raise DataError(
            f"{task.image}: values up to {np.abs(voxels).max():g} do not fit float16; intensity: none suits masks and small numbers"
        )
    names = [store / name for name in stored_names(task.scan)]
    names[2].unlink(missing_ok=True)  # from here until the end the scan counts as absent
    description: dict[str, Any] = {
        **identity,
        "sha256": image.sha256,
        "shape": list(stored.shape),
        "affine": affine.tolist(),
        "body": {"box": body.box, "method": body.method, "fraction": body.fraction, "from_world": _from_world(task, affine, body.box)},
        "normalisation": asdict(normalisation),
        "source_spacing_mm": image.spacing_mm.tolist(),
        "num_nonfinite": image.num_nonfinite,
        "warnings": [*image.warnings, *(label.warnings if label else ())],
    }
    description["stored_sha256"], description["stored_bytes"] = _write(names[0], stored)
    if label is not None:
        classes = _on_grid(label, task.spacing_mm, is_label=True)[0][0]
        description["label_sha256"], description["label_bytes"] = _write(names[1], classes)
        values, counts = np.unique(classes, return_counts=True)
        description["class_voxels"] = {str(v): int(n) for v, n in zip(values, counts, strict=True)}
    write_json(names[2], description)
    return tuple(description["warnings"])


def _from_world(task: ScanTask, affine: np.ndarray, body_box: Any) -> list[list[float]]:
    """World mm -> body mm: into the atlas where the manifest names an affine, else from the middle of the body."""
    from_world = middle_of_body(affine, np.array(body_box)) if task.atlas is None else read_affine(task.atlas)
    return from_world.tolist()


def read_affine(path: Path) -> np.ndarray:
    """``Float64[4, 4]`` from four lines of four numbers. DataError where it is none that maps mm to mm."""
    what = "an affine from world mm to atlas mm (both RAS+) is four lines of four numbers, the last 0 0 0 1"
    try:
        affine = np.loadtxt(path, dtype=np.float64)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}; {what}") from None
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.allclose(affine[3], [0, 0, 0, 1]):
        raise DataError(f"{path}: holds {affine.shape} numbers; {what}")
    if abs(np.linalg.det(affine[:3, :3])) < 1e-3:
        raise DataError(f"{path}: the affine is singular: it maps the body onto a plane; {what}")
    return affine


def _respaced(volume: Volume, spacing_mm: tuple[float, float, float]) -> Volume:
    """The same voxels and directions with another voxel size along each axis of the file."""
    affine = volume.affine.copy()
    affine[:3, :3] *= np.array(spacing_mm) / volume.spacing_mm
    return replace(volume, affine=affine)


def _on_grid(volume: Volume, spacing_mm: tuple[float, float, float] | None, *, is_label: bool) -> tuple[np.ndarray, np.ndarray]:
    """``[C, D, H, W]`` with axes nearest to RAS+, at the spacing asked for."""
    image = nibabel.Nifti1Image(np.moveaxis(volume.voxels, 0, -1), volume.affine)
    turned = nibabel.as_closest_canonical(image)
    voxels = np.ascontiguousarray(np.moveaxis(np.asarray(turned.dataobj), -1, 0))
    affine = np.asarray(turned.affine, dtype=np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing_mm is None or np.allclose(spacing, spacing_mm, rtol=1e-3):
        return voxels, affine
    from medcl3d.data.torchio_bridge import resample

    return resample(voxels, affine, spacing_mm, label=is_label)


def _write(path: Path, values: np.ndarray) -> tuple[str, int]:
    with replacing(path) as file:
        np.save(file, values)
        size = file.tell()
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest(), size
