"""Content hashes of scans, which identify the same scan in another prepared folder.

A description has up to three of them; two scans are the same if one hash is equal:

sha256         of the uncompressed file; independent of name, id, compression and preparation
voxels_sha256  of the values alone; independent of the rest of the header (anonymised, another data type or
               byte order, axes reoriented with their affine) and of all options but `channels`; missing in
               older stores
stored_sha256  of the stored voxels; independent of the header and of a linear scale of the values, if the
               options are the same

No hash identifies a copy that was resampled, defaced or filtered before it was prepared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

OF_SOURCE = {"sha256": "the same file", "voxels_sha256": "the same volume in another file"}
HASHES = {**OF_SOURCE, "stored_sha256": "the same stored volume"}

# Hexadecimal digits kept of a hash, 64 bits: one line of up to 55 bytes per scan. A hash of 5 000 scans
# equals one of 20 000 others by chance with probability 15 000 x 60 000 / 2^64, about 1 in 20 000 million.
DIGITS = 16


def hash_voxels(voxels: np.ndarray) -> str:
    """SHA-256 of a volume ``Float32[C, D, H, W]`` and its shape.

    Reorient its axes to RAS+ first, since copies may have another orientation.
    """
    digest = hashlib.sha256(repr(tuple(int(n) for n in voxels.shape)).encode())
    digest.update(np.ascontiguousarray(voxels, dtype="<f4").data)
    return digest.hexdigest()


def short_hashes(description: Mapping[str, Any]) -> dict[str, str]:
    """The first digits of the content hashes in a description, by the name of the hash."""
    return {name: description[name][:DIGITS] for name in HASHES if name in description}


def contents(descriptions: Iterable[Mapping[str, Any]]) -> list[str]:
    """One line per scan, its hashes separated by spaces; sorted so that the order does not identify scans."""
    return sorted(" ".join(short_hashes(description).values()) for description in descriptions)


def scans_with_content(descriptions: Iterable[Mapping[str, Any]], noted: Iterable[str]) -> dict[str, str]:
    """The scans whose content is in lines of `contents`: id -> description of what is the same."""
    known = {digits for line in noted for digits in line.split()}
    found = {}
    for description in descriptions:
        same = [HASHES[name] for name, digits in short_hashes(description).items() if digits in known]
        if same:
            found[str(description["scan"])] = same[0]
    return found


def duplicate_groups(descriptions: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[int]]]:
    """Groups of descriptions with the same content, once each: (what is the same, indices of two or more).

    Compares the hashes of the sources, since different scans may be stored as the same voxels (a phantom in
    two linear scales).
    """
    found: dict[tuple[int, ...], str] = {}
    for name, what in OF_SOURCE.items():
        indices: dict[str, list[int]] = {}
        for index, description in enumerate(descriptions):
            if name in description:
                indices.setdefault(description[name], []).append(index)
        for group in indices.values():
            if len(group) > 1:
                found.setdefault(tuple(group), what)
    return [(what, list(group)) for group, what in found.items()]
