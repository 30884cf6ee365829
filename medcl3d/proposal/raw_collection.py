"""Raw scans as one of the sources reads them, or as a proposed table if none does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from medcl3d.config.choices import parse_choice
from medcl3d.core.errors import DataError
from medcl3d.datasets.dicom.order import affine_of
from medcl3d.datasets.label_pairs import Grid
from medcl3d.datasets.manifest import Manifest
from medcl3d.datasets.sources import SOURCES
from medcl3d.io.nifti import read_header
from medcl3d.io.progress import track
from medcl3d.proposal.scan_table import propose_table
from medcl3d.quality.source_detection import detect_source, read_collection


@dataclass(frozen=True)
class RawCollection:
    """Scans that are not prepared yet.

    source    of `medcl3d prepare`
    fields    its fields, as KEY=VALUE
    table     one row per scan, as text; paths are relative to the folder if it is a proposal
    grids     of the scans whose headers can be read
    proposed  the table is a proposal, and not written yet
    """

    source: str
    fields: tuple[str, ...]
    table: pd.DataFrame
    grids: tuple[Grid, ...]
    notes: tuple[str, ...]
    proposed: bool


def read_raw(target: Path) -> RawCollection:
    """The scans of a table or a folder. DataError if there are none, or if it is a store."""
    if not target.exists():
        raise DataError(target, "there is no such file or folder")
    source = detect_source(target)
    if source == "":
        raise DataError(target, "is a prepared store", "give the raw scans, or run medcl3d pretrain on it")
    if source == "files" and target.is_file():
        raise DataError(target, "is one file", "give a folder of scans, or a table that lists them")
    if source == "files":
        return _of_files(target, ())
    try:
        return _of_source(source, target)
    except DataError as error:
        if source == "csv":
            raise
        return _of_files(target, (f"not read as {source}: {error}",))


def _of_files(target: Path, notes: Sequence[str]) -> RawCollection:
    """A proposed table, unless all scans are DICOM series, which their source reads without one."""
    made = propose_table(target)
    if not any(path.endswith((".nii", ".nii.gz")) for path in made.table["path"]):
        with suppress(DataError):
            return _of_source("dicom", target)
    return RawCollection("csv", ("allow_outside=true",), made.table, made.grids, (*notes, *made.notes), True)


def _of_source(source: str, target: Path) -> RawCollection:
    given = {"allow_outside": True} if source == "csv" else {}
    manifest = read_collection(target, parse_choice(SOURCES, source, given, "init"))
    fields = ("allow_outside=true",) if given and _leaves_its_root(manifest) else ()
    missing = manifest.missing()
    notes = [*manifest.notes, *manifest.faults.values()]
    notes += [f"warning: {manifest.describe_missing(missing)}"] if missing else []
    return RawCollection(source, fields, manifest.table, _grids(manifest), tuple(notes), False)


def _leaves_its_root(manifest: Manifest) -> bool:
    """Whether a path needs `allow_outside`."""
    inside = replace(manifest, outside=False)
    rows = manifest.table[~manifest.table["scan"].isin([*manifest.unwritten, *manifest.faults])]
    folders = [text for text in manifest.table["path"] if text not in set(rows["path"])]
    try:
        for text in [*rows["path"], *(text for text in manifest.table["label"] if text), *folders]:
            inside.locate(text)
    except DataError:
        return True
    return False


def _grids(manifest: Manifest) -> tuple[Grid, ...]:
    found = []
    for scan, path in track(
        list(zip(manifest.table["scan"], manifest.table["path"], strict=True)), "reading headers"
    ):
        if scan in manifest.unwritten:
            slices = manifest.unwritten[scan].slices
            found.append(Grid((*slices[0].shape, len(slices)), affine_of(slices)))
        elif scan not in manifest.faults:
            with suppress(DataError):
                header = read_header(manifest.locate(path))
                found.append(Grid(header.shape, header.affine))
    if not found:
        raise DataError(manifest.root, "no scan has a readable header")
    return tuple(found)
