"""Parsed BIDS file names: ``sub-01_ses-2_acq-x_T1w.nii.gz``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from medcl3d.core.errors import DataError

# Entities that identify a label map or a resampled image of a scan, not the scan.
OF_A_DERIVATIVE = frozenset(
    ("atlas", "cohort", "den", "desc", "hemi", "label", "res", "scale", "seg", "space")
)


@dataclass(frozen=True)
class BidsName:
    """The parsed name of one file.

    stem      the name without its ending
    entities  key -> value: sub -> 01
    suffixes  the pieces that are not key-value pairs; BIDS has one at the end, some programs write T1w_dseg
    """

    stem: str
    entities: Mapping[str, str]
    suffixes: tuple[str, ...]

    @staticmethod
    def of(file: str) -> BidsName:
        """Parse a file name."""
        stem = re.sub(r"\.(nii|nii\.gz|json|tsv)$", "", file)
        parts = [part.split("-", 1) for part in stem.split("_")]
        suffixes = tuple(part[0] for part in parts if len(part) == 1)
        return BidsName(stem, {part[0]: part[1] for part in parts if len(part) == 2}, suffixes)

    @property
    def suffix(self) -> str:
        """The kind of file, as T1w or dseg."""
        return self.suffixes[-1] if self.suffixes else "unknown"

    @cached_property
    def scan(self) -> tuple[str, ...]:
        """The entities that identify the scan of the file."""
        return tuple(
            sorted(f"{key}-{value}" for key, value in self.entities.items() if key not in OF_A_DERIVATIVE)
        )


def session_of(folders: Sequence[str], name: BidsName, file: str) -> str:
    """The session from a file's name and its folders, the subject's first; "1" if neither has one.

    file  its path, for messages

    Raises DataError if the name has another subject or session than the folders.
    """
    session = name.entities.get("ses", "1")
    for key, folder in zip(("sub", "ses"), folders, strict=False):
        if not folder.startswith(f"{key}-"):
            continue
        value = name.entities.get(key)
        if value is not None and folder != f"{key}-{value}":
            raise DataError(file, f"{key}-{value} in the folder {folder}", "rename the file, or move it")
        if key == "ses":
            session = folder.removeprefix("ses-")
    return session
