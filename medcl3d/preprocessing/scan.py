"""Prepare one scan: validate, reorient to RAS+, resample, normalise, write."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from medcl3d.core.body_coordinates import middle_of_body
from medcl3d.core.errors import DataError, UserError, unexpected_error
from medcl3d.io.array_file import write_array
from medcl3d.io.atomic import write_json
from medcl3d.io.regular_file import open_regular
from medcl3d.preprocessing.read_scan import SkippedScan, read_label
from medcl3d.preprocessing.ready_scan import ready_scan
from medcl3d.preprocessing.resample import resampled_label
from medcl3d.preprocessing.scan_identity import CONTENT, identity_of, is_current, stored_description
from medcl3d.preprocessing.scan_task import Outcome, ScanTask
from medcl3d.store.stored_scan import stored_names


def prepare_scan(task: ScanTask, store: Path) -> Outcome:
    """Prepare one scan, unless it is already stored.

    Faults of its files are returned as an outcome, not raised.
    """
    try:
        identity = identity_of(task)
        stored = stored_description(task, store)
        if stored is not None and is_current(stored, identity):
            was_touched = any(stored.get(name) != value for name, value in identity.items())
            if was_touched:  # so that no file is hashed next time
                write_json(store / stored_names(task.scan)[2], {**stored, **identity})
            return Outcome(task.scan, "ok", "", tuple(stored["warnings"]), was_unchanged=True)
        return Outcome(task.scan, "ok", "", _prepare(task, store, identity))
    except SkippedScan as error:
        status, reason = "skipped", str(error)
    except DataError as error:
        status, reason = "refused", str(error)
    except MemoryError:
        remedy = "use fewer workers, or a coarser spacing_mm"
        status, reason = "refused", f"{task.image}: not enough memory for this scan; {remedy}"
    except Exception as error:
        file = error.filename if isinstance(error, OSError) else None
        is_in_store = file is not None and Path(str(file)).is_relative_to(store)
        if isinstance(error, UserError) or is_in_store:  # a full disk affects all scans
            raise
        status, reason = "refused", unexpected_error(task.image, error)
    (store / stored_names(task.scan)[2]).unlink(missing_ok=True)
    return Outcome(task.scan, status, reason, ())


def _prepare(task: ScanTask, store: Path, identity: dict[str, Any]) -> tuple[str, ...]:
    ready = ready_scan(task)
    image, body = ready.image, ready.body
    if task.atlas is None:
        from_world = middle_of_body(ready.affine, np.array(body.box))
    else:
        from_world = read_affine(task.atlas)
    label = read_label(task.label, image, task.classes) if task.label else None
    names = [store / name for name in stored_names(task.scan, task.store)]
    names[2].unlink(missing_ok=True)  # the scan counts as missing until the new description is written
    description: dict[str, Any] = {
        **identity,
        "sha256": image.sha256,
        "voxels_sha256": ready.voxels_sha256,
        "shape": list(ready.stored.shape),
        "scaling": ready.scaling,
        "affine": ready.affine.tolist(),
        "body": {
            "box": body.box,
            "method": body.method,
            "fraction": body.fraction,
            "from_world": from_world.tolist(),
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
        label = replace(label, affine=ready.own_affine)
        whole = resampled_label(label, task.spacing_mm, task.label_interpolation)
        classes = np.ascontiguousarray(whole[ready.window])
        lost = int(np.count_nonzero(whole) - np.count_nonzero(classes))
        if lost:
            warning = f"{lost} labelled voxels are outside the body and were cropped off"
            description["warnings"].append(warning)
        description["label_sha256"], description["label_bytes"] = write_array(names[1], classes)
        values, counts = np.unique(classes, return_counts=True)
        description["class_voxels"] = {str(v): int(n) for v, n in zip(values, counts, strict=True)}
    write_json(names[2], description)
    return tuple(description["warnings"])


def read_affine(path: Path) -> np.ndarray:
    """``Float64[4, 4]`` from four lines of four numbers.

    DataError if it is not an invertible affine from mm to mm.
    """
    what = "an affine from world mm to atlas mm (both RAS+) is four lines of four numbers, the last 0 0 0 1"
    try:
        with os.fdopen(open_regular(path), encoding="utf-8") as text:
            affine = np.loadtxt(text, dtype=np.float64)
    except (OSError, ValueError) as error:
        raise DataError(path, error, what) from None
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.allclose(affine[3], [0, 0, 0, 1]):
        raise DataError(path, f"contains {affine.shape} numbers", what)
    if abs(np.linalg.det(affine[:3, :3])) < 1e-3:
        raise DataError(path, "the affine is singular: it maps the body onto a plane", what)
    return affine
