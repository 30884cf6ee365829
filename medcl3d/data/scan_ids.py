"""Ids of scans: what can name the files of a store, and what is made up where a collection names none."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from urllib.parse import quote

MAX_BYTES = 200  # as a file's name, endings come on top: file systems take 255 of all that
MADE_BYTES = 150

_LABEL = ".label"


def file_stem(scan: str) -> str:
    """A scan's id as a piece of the names of its files in a store; an id may hold any character, and none is taken for a label map."""
    stem = quote(scan, safe=" +=@,")
    return f"{stem.removesuffix(_LABEL)}%2Elabel" if stem.endswith(_LABEL) else stem


def fault_of(scan: str) -> str:
    """Why an id cannot name a file, "" where it can."""
    if re.search(r"[\x00-\x1f]", scan):
        return "holds characters that cannot be printed; leave them out"
    taken = len(file_stem(scan))
    if taken <= MAX_BYTES:
        return ""
    return f"takes {taken} bytes as a file's name and {MAX_BYTES} may be (letters beyond a to z take 6 or more); shorten it"


def made_ids(paths: Sequence[str], names: Sequence[str] | None = None) -> list[str]:
    """An id for each of some files, no two the same: its name where that is one file's only, else what the path says.

    names  short ones to begin with (default: none, the path says it: ``a/b/scan.nii.gz`` -> ``a_b_scan``)
    """
    of_paths = [_of_path(path) for path in paths]
    first = list(names) if names is not None else of_paths
    made = [path if count > 1 else name for name, path, count in zip(first, of_paths, _counts(first), strict=True)]
    made = [f"{name}-{_mark(path)}" if count > 1 else name for name, path, count in zip(made, paths, _counts(made), strict=True)]
    return [_short(name, path) for name, path in zip(made, paths, strict=True)]


def _counts(names: Sequence[str]) -> list[int]:
    counts = Counter(names)
    return [counts[name] for name in names]


def _of_path(path: str) -> str:
    stem = re.sub(r"\.(nii|nii\.gz|nrrd|mha)$", "", path, flags=re.IGNORECASE)
    return re.sub(r"[\\/\x00-\x1f]+", "_", stem.removeprefix("./"))


def _mark(path: str) -> str:
    """A few characters that tell one path from another, whatever else lies in the folder."""
    return hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:8]


def _short(name: str, path: str) -> str:
    """The end of a long name, which says more of a file than the folders before it, behind its path's mark."""
    if len(file_stem(name)) <= MADE_BYTES:
        return name
    mark = _mark(path)
    while len(file_stem(f"{mark}_{name}")) > MADE_BYTES:
        name = name[1 + len(name) // 20 :]
    return f"{mark}_{name}"
