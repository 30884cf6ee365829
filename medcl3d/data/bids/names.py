"""Names of files as BIDS has them, taken apart: ``sub-01_ses-2_acq-x_T1w.nii.gz``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from medcl3d.errors import DataError

# Entities that say which label map or which resampled image of a scan something is, and not of which scan.
OF_A_DERIVATIVE = frozenset(("atlas", "cohort", "den", "desc", "hemi", "label", "res", "scale", "seg", "space"))


@dataclass(frozen=True)
class BidsName:
    """Of one file.

    stem      the name without its ending
    entities  key -> value: sub -> 01
    suffixes  the pieces that are no pair; BIDS has one at the end, others write T1w_dseg
    """

    stem: str
    entities: Mapping[str, str]
    suffixes: tuple[str, ...]

    @staticmethod
    def of(file: str) -> BidsName:
        """Take the name of a file apart."""
        stem = re.sub(r"\.(nii|nii\.gz|json|tsv)$", "", file)
        parts = [part.split("-", 1) for part in stem.split("_")]
        suffixes = tuple(part[0] for part in parts if len(part) == 1)
        return BidsName(stem, {part[0]: part[1] for part in parts if len(part) == 2}, suffixes)

    @property
    def suffix(self) -> str:
        """What kind of file it is, as T1w or dseg."""
        return self.suffixes[-1] if self.suffixes else "unknown"

    @cached_property
    def scan(self) -> tuple[str, ...]:
        """The entities that say which scan it is, or is of."""
        return tuple(sorted(f"{key}-{value}" for key, value in self.entities.items() if key not in OF_A_DERIVATIVE))


def session_of(folders: Sequence[str], name: BidsName, file: str) -> str:
    """The session by a file's name and the folders that it lies in, the subject's first; "1" where neither says it.

    file  its path, for messages

    Raises DataError where the name says another subject or session than the folders: whose a scan is cannot be guessed.
    """
    session = name.entities.get("ses", "1")
    for key, folder in zip(("sub", "ses"), folders, strict=False):
        if not folder.startswith(f"{key}-"):
            continue
        value = name.entities.get(key)
        if value is not None and folder != f"{key}-{value}":
            raise DataError(f"{file}: {key}-{value} in the folder {folder}: whose is it? rename the file, or move it")
        if key == "ses":
            session = folder.removeprefix("ses-")
    return session
