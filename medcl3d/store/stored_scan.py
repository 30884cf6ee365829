"""The files of a stored scan, from its description: find, open and verify them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medcl3d.core.errors import DataError
from medcl3d.datasets.scan_ids import file_stem
from medcl3d.io.array_file import PREPARE_AGAIN, SUFFIXES, Container, Stored, open_array
from medcl3d.store.quantise import AS_STORED, Scaling

SCHEMA = 2
REGISTERED = "registered.json"  # body coordinates by registration


def stored_path(root: Path, about: Mapping[str, Any], *, is_label: bool) -> Path:
    """The file of a scan's voxels, or of its segmentation."""
    return root / "store" / stored_names(str(about["scan"]), about.get("store", "npy"))[1 if is_label else 0]


def open_stored(root: Path, about: Mapping[str, Any], *, is_label: bool) -> Stored:
    """``[C, D, H, W]`` as stored, or the label ``Int16[D, H, W]``.

    DataError if it contradicts the description.
    """
    path = stored_path(root, about, is_label=is_label)
    shape, dtype = tuple(about["shape"]), about["options"].get("store_as", "float16")
    if is_label:
        shape, dtype = shape[1:], "int16"
    values = open_array(path)
    if values.shape != shape or values.dtype != dtype:
        problem = f"contains {values.dtype} {values.shape}, its description has {dtype} {shape}"
        raise DataError(path, problem, PREPARE_AGAIN)
    return values


def check_size(path: Path, about: Mapping[str, Any], *, is_label: bool) -> None:
    """DataError if the file of a scan's voxels, or of its segmentation, has not the size that was written."""
    written = about.get("label_bytes" if is_label else "stored_bytes")
    try:
        size = os.stat(path).st_size
    except OSError as error:
        again = "run the same prepare command again"
        raise DataError(path, f"cannot be read ({error.strerror})", again) from None
    if written is not None and size != written:
        raise DataError(path, f"has {size} bytes, {written} were written", PREPARE_AGAIN)


def verify_stored(root: Path, about: Mapping[str, Any]) -> None:
    """Read all stored voxels of a scan and compare them with their hashes. Raises DataError."""
    for is_label, key in ((False, "stored_sha256"), (True, "label_sha256")):
        if key not in about:
            continue
        content = np.ascontiguousarray(open_stored(root, about, is_label=is_label)[...])
        if hashlib.sha256(content.data).hexdigest() != about[key]:
            path = stored_path(root, about, is_label=is_label)
            raise DataError(path, "the voxels changed after preparing", PREPARE_AGAIN)


def stored_names(scan: str, store: Container = "npy") -> tuple[str, str, str]:
    """File names of a scan's voxels, label and description; an id may contain any character."""
    name = file_stem(scan)
    return f"{name}{SUFFIXES[store]}", f"{name}.label{SUFFIXES[store]}", f"{name}.json"


def scaling_of(about: Mapping[str, Any]) -> Scaling:
    """Factor and offset of the stored voxels: value = stored * factor + offset."""
    factor, offset = about.get("scaling", AS_STORED)
    return float(factor), float(offset)


def read_description(root: Path, scan: str) -> dict[str, Any]:
    """The description of a scan that `prepare` has just written."""
    found: dict[str, Any] = json.loads((root / "store" / stored_names(scan)[2]).read_text())
    return found


def read_registered(root: Path) -> dict[str, dict[str, Any]]:
    """Scan -> its entry in registered.json; {} without the file. DataError if the file is damaged."""
    path = root / REGISTERED
    try:
        found: dict[str, dict[str, Any]] = json.loads(path.read_text())["scans"]
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        remedy = "delete it and run the same `medcl3d prepare` command again"
        raise DataError(path, "is damaged", remedy) from None
    return found
