"""What a scan holds, whatever it is called: hashes by which it is known again in another prepared folder.

A description has up to three of them, and one that agrees is enough:

sha256         of the uncompressed file: whatever its name and id, however it is zipped and prepared
voxels_sha256  of the values alone: whatever else the header says (anonymised, another data type or byte order, axes turned with their
               affine), however it is prepared but for `channels`; stores that were prepared before it was known do not have it
stored_sha256  of what a network sees: whatever else the header says, in a linear scale of its own too, where the options are the same

None knows a copy that was resampled, defaced or filtered before it was prepared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

OF_SOURCE = {"sha256": "the same file", "voxels_sha256": "the same volume in another file"}
HASHES = {**OF_SOURCE, "stored_sha256": "the same stored volume"}

DIGITS = 16
"""Hexadecimal digits of a hash that are noted, 64 bits: of 20 000 scans a line of 55 bytes each. That some hash of 5 000 other
scans agrees with one of theirs by chance has odds of 60 000 x 15 000 / 2^64, about 1 in 20 000 million."""


def hash_of_voxels(voxels: np.ndarray) -> str:
    """SHA-256 of a volume ``Float32[C, D, H, W]`` and its shape. Turn its axes to RAS+ first: copies may lie the other way round."""
    digest = hashlib.sha256(repr(tuple(int(n) for n in voxels.shape)).encode())
    digest.update(np.ascontiguousarray(voxels, dtype="<f4").data)
    return digest.hexdigest()


def content_of(description: Mapping[str, Any]) -> dict[str, str]:
    """What a description knows its scan by: name of the hash -> its first digits."""
    return {name: description[name][:DIGITS] for name in HASHES if name in description}


def contents(descriptions: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line a scan, its hashes with blanks between, sorted so that nothing tells which scan is which."""
    return sorted(" ".join(content_of(description).values()) for description in descriptions)


def known_again(descriptions: Iterable[Mapping[str, Any]], noted: Iterable[str]) -> dict[str, str]:
    """The scans whose content stands in lines of `contents`: id -> what is the same."""
    seen = {digits for line in noted for digits in line.split()}
    found = {}
    for description in descriptions:
        same = [HASHES[name] for name, digits in content_of(description).items() if digits in seen]
        if same:
            found[str(description["scan"])] = same[0]
    return found


def groups_of_one_content(descriptions: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[int]]]:
    """What is the same, and the places of the descriptions that share it, two or more each; each group once.

    By the hashes of the source: two scans may differ, and be stored as one (a phantom in two linear scales).
    """
    found: dict[tuple[int, ...], str] = {}
    for name, words in OF_SOURCE.items():
        places: dict[str, list[int]] = {}
        for place, description in enumerate(descriptions):
            if name in description:
                places.setdefault(description[name], []).append(place)
        for same in places.values():
            if len(same) > 1:
                found.setdefault(tuple(same), words)
    return [(words, list(same)) for same, words in found.items()]
