"""A prepared scan's own files, by its description: where they lie, opened, and held against their hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medcl3d.data.array_file import AGAIN, Stored, open_array
from medcl3d.data.scan import stored_names
from medcl3d.errors import DataError


def path_of(root: Path, about: Mapping[str, Any], *, is_label: bool) -> Path:
    """The file of a scan's voxels, or of its segmentation, in the folder that `prepare` wrote."""
    return root / "store" / stored_names(str(about["scan"]), about.get("store", "npy"))[1 if is_label else 0]


def open_stored(root: Path, about: Mapping[str, Any], *, is_label: bool) -> Stored:
    """``[C, D, H, W]`` as stored, or ``Int16[D, H, W]``. DataError where the file is not what the description says."""
    path, shape, dtype = path_of(root, about, is_label=is_label), tuple(about["shape"]), about["options"].get("store_as", "float16")
    if is_label:
        shape, dtype = shape[1:], "int16"
    values = open_array(path)
    if values.shape != shape or values.dtype != dtype:
        raise DataError(f"{path}: holds {values.dtype} {values.shape}, its description says {dtype} {shape}; {AGAIN}")
    return values


def verify_stored(root: Path, about: Mapping[str, Any]) -> None:
    """Read all of a scan's stored voxels and hold them against their hashes. Raises DataError."""
    for is_label, key in ((False, "stored_sha256"), (True, "label_sha256")):
        if key not in about:
            continue
        content = np.ascontiguousarray(open_stored(root, about, is_label=is_label)[...])
        if hashlib.sha256(content.data).hexdigest() != about[key]:
            raise DataError(f"{path_of(root, about, is_label=is_label)}: the voxels changed after preparing; {AGAIN}")
