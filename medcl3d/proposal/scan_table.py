"""The proposed table of a folder's scans: patient, session, modality, frame and label map of each."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medcl3d.core.errors import DataError
from medcl3d.core.notes import naming
from medcl3d.datasets.label_pairs import Grid, LabelPairs, pair_label_maps
from medcl3d.datasets.missing_ids import is_missing_id
from medcl3d.datasets.name_words import date_in, names_label_maps
from medcl3d.datasets.path_roles import PathRoles, guess_roles, named_as_label_maps
from medcl3d.datasets.scan_ids import default_ids
from medcl3d.io.nifti_header import is_identity
from medcl3d.proposal.scan_files import Contents, ScanFiles, find_scans, sample_contents

COLUMNS = (
    "scan",
    "patient",
    "session",
    "session_days",
    "modality",
    "frame",
    "path",
    "series",
    "part",
    "label",
)
NEEDED = ("scan", "patient", "path")


@dataclass(frozen=True)
class ScanTable:
    """A proposed table.

    table  text; paths are relative to the folder; columns without a value are left out
    grids  of the rows
    notes  on guesses to check and on files that are left out
    """

    table: pd.DataFrame
    grids: tuple[Grid, ...]
    notes: tuple[str, ...]


def propose_table(root: Path) -> ScanTable:
    """Propose a table of all NIfTI files and DICOM series below a folder. DataError if it has no scan."""
    files = find_scans(root)
    contents = sample_contents(root, files.volumes)
    named = named_as_label_maps(files.volumes)
    labels = sorted((named - contents.are_images) | contents.are_labels)
    images = [path for path in files.grids if path not in set(labels)]
    if not images:
        problem = f"all {len(labels)} NIfTI files are label maps, by their names or values"
        raise DataError(root, problem, "give the folder of their images")
    roles = guess_roles([*images, *labels])
    pairs = pair_label_maps(images, labels, roles, files.grids)
    roles, merged = _same_people(roles, files.series)
    rows = [_row(path, roles[path], files, contents, pairs) for path in images]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(str)
    table["scan"] = default_ids(images)
    table["frame"] = _frames(table, [files.grids[path] for path in images])
    kept = [name for name in COLUMNS if name in NEEDED or (table[name] != "").any()]
    notes = [*_doubts(table), *merged, *_label_notes(images, labels, named, contents, pairs), *files.notes]
    return ScanTable(table[kept], tuple(files.grids[path] for path in images), tuple(notes))


def _row(
    path: str, roles: PathRoles, files: ScanFiles, contents: Contents, pairs: LabelPairs
) -> dict[str, str]:
    row = {
        "patient": roles.patient,
        "session": roles.session,
        "session_days": roles.date,
        "modality": roles.modality or ("CT" if path in contents.are_hu else ""),
        "frame": "",
        "path": path,
        "label": pairs.label_of.get(path, ""),
    }
    if series := files.series.get(path):
        date = date_in(series.get("study_date", ""))
        row |= {name: series[name] for name in ("modality", "series", "part") if name in series}
        row |= {"path": series["folder"], "session_days": row["session_days"] or date}
        row["session"] = row["session"] or date or series["session"]
        uid = series["frame"].rpartition("/")[2] if series["frame"] != series["scan"] else ""
        row["frame"] = f"{roles.patient}/{uid}" if uid else ""
    return {name: row.get(name, "") for name in COLUMNS}


def _same_people(
    roles: Mapping[str, PathRoles], series: Mapping[str, Mapping[str, str]]
) -> tuple[dict[str, PathRoles], list[str]]:
    """The same columns, where a DICOM series has the patient of its headers if no folder names one.

    Series of one PatientID are of one patient, with a note if folders name several.
    """
    made = dict(roles)
    folders: dict[str, list[str]] = defaultdict(list)
    for path, row in series.items():
        own, by_header = roles[path], row["patient"]
        # Without a PatientID the source takes the first folder, which the roles know better.
        if is_missing_id(by_header) or by_header == path.split("/")[0]:
            continue
        if own.depth is None:
            made[path] = PathRoles(by_header, own.session, own.modality, None)
        elif own.patient not in folders[by_header]:
            folders[by_header].append(own.patient)
    several = {name: found for name, found in folders.items() if len(found) > 1}
    first = {other: found[0] for found in several.values() for other in found[1:]}
    for path, one in made.items():
        if one.patient in first:
            made[path] = PathRoles(first[one.patient], one.session, one.modality, one.depth)
    text = "PatientIDs are in the folders of several patients, who were joined"
    named = [f"{name} in {', '.join(found)}" for name, found in several.items()]
    return made, [naming(f"{len(several)} {text}", named)] if several else []


def _frames(table: pd.DataFrame, grids: Sequence[Grid]) -> list[str]:
    """A frame for scans of one patient and session that have one grid, "" for the others.

    Grids whose position in space is lost have one affine without sharing millimetres.
    """
    frames = table["frame"].tolist()
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, (patient, session) in enumerate(zip(table["patient"], table["session"], strict=True)):
        grid = grids[row]
        if is_identity(grid.affine):
            continue
        groups[patient, session, str(grid.shape[:3]), str(np.round(grid.affine, 2).tolist())].append(row)
    number = Counter[tuple[str, str]]()
    for (patient, session, *_), rows in groups.items():
        if len(rows) > 1 and not any(frames[row] for row in rows):
            number[patient, session] += 1
            name = "/".join(part for part in (patient, session, f"grid {number[patient, session]}") if part)
            for row in rows:
                frames[row] = name
    return frames


def _doubts(table: pd.DataFrame) -> list[str]:
    """Notes on patients that may not be patients, and on unknown modalities."""
    notes, patients = [], table["patient"].unique().tolist()
    wrong = [name for name in patients if names_label_maps(name)]
    if wrong:
        what = "patients have names of label maps: such folders hold label maps, not patients"
        notes.append(naming(f"warning: {len(wrong)} {what}; correct the column patient", wrong))
    unknown = table["path"][table["modality"] == ""].tolist()
    if unknown and len(unknown) < len(table):
        text = f"{len(unknown)} scans have no modality in their names; they count as MR"
        notes.append(naming(f"{text}: fill in the column modality", unknown))
    return notes


def _label_notes(
    images: Sequence[str], labels: Sequence[str], named: set[str], contents: Contents, pairs: LabelPairs
) -> list[str]:
    notes = []
    for paths, text in (
        (sorted(named & contents.are_images), "files are named as label maps but hold grey values: images"),
        (sorted(set(labels) - named), "files hold a few whole numbers only: label maps, not images"),
        (pairs.unmatched, "label maps have no image of their name and grid and are left out"),
        (
            pairs.ambiguous,
            "label maps share their image, or fit several, and are left out: write one file per "
            "image with one number per structure",
        ),
    ):
        if paths:
            notes.append(naming(f"{len(paths)} {text}", list(paths)))
    used = set(pairs.label_of.values())
    values: dict[tuple[int, ...], str] = {}
    for path, found in contents.values.items():
        if path in used:
            values.setdefault(found, path)
    largest = sorted({max(found) for found in values})
    if len(largest) > 1 and largest[0] < largest[-1] / 2:
        low, high = (
            next(path for found, path in values.items() if max(found) == n) for n in (largest[0], largest[-1])
        )
        text = f"label maps have values up to {largest[0]} ({low}) and up to {largest[-1]} ({high})"
        remedy = "if one number means several structures, plan each part of the scans on its own"
        notes.append(f"warning: {text}; {remedy}")
    return notes
