"""Scan ids: which can name the files of a store, and default ids of scans without one."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from urllib.parse import quote

MAX_BYTES = 200  # in a file name, without endings; file systems allow 255 bytes in total
MADE_BYTES = 150

_LABEL = ".label"


def file_stem(scan: str) -> str:
    """The stem of a scan's file names in a store, for any id; distinct from those of label maps."""
    stem = quote(scan, safe=" +=@,")
    return f"{stem.removesuffix(_LABEL)}%2Elabel" if stem.endswith(_LABEL) else stem


def fault_of(scan: str) -> str:
    """Why an id cannot name a file, "" if it can."""
    if re.search(r"[\x00-\x1f]", scan):
        return "contains characters that cannot be printed; remove them"
    num_bytes = len(file_stem(scan))
    if num_bytes <= MAX_BYTES:
        return ""
    limit = f"at most {MAX_BYTES} are allowed (letters outside a to z take 6 or more)"
    return f"takes {num_bytes} bytes in a file name, {limit}; shorten it"


def default_ids(paths: Sequence[str], names: Sequence[str] | None = None) -> list[str]:
    """A unique id per file: its name if no other file has it, else from its path.

    names  short names (default: none, ids come from paths: ``a/b/scan.nii.gz`` -> ``a_b_scan``)
    """
    of_paths = [_of_path(path) for path in paths]
    first = list(names) if names is not None else of_paths
    counts = Counter(first)
    made = [path if counts[name] > 1 else name for name, path in zip(first, of_paths, strict=True)]
    counts, pairs = Counter(made), zip(made, paths, strict=True)
    return [_short(f"{name}-{_mark(path)}" if counts[name] > 1 else name, path) for name, path in pairs]


def _of_path(path: str) -> str:
    stem = re.sub(r"\.(nii|nii\.gz|nrrd|mha)$", "", path, flags=re.IGNORECASE)
    return re.sub(r"[\\/\x00-\x1f]+", "_", stem.removeprefix("./"))


def _mark(path: str) -> str:
    """A short hash that distinguishes a path from all others."""
    return hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:8]


def _short(name: str, path: str) -> str:
    """The end of a long name, which is more specific than the folders before it, after a hash of its path."""
    if len(file_stem(name)) <= MADE_BYTES:
        return name
    mark = _mark(path)
    while len(file_stem(f"{mark}_{name}")) > MADE_BYTES:
        name = name[1 + len(name) // 20 :]
    return f"{mark}_{name}"
