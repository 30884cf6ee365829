"""BIDS: subjects, sessions and modalities in the names of files, tables beside them, labels under derivatives."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from medcl3d.data.manifest import MISSING, Manifest, read_rows, read_table
from medcl3d.data.sources import SOURCES
from medcl3d.errors import DataError

VOLUMES = (".nii.gz", ".nii")
LEFT_OUT = {"bold", "dwi", "asl", "epi", "phase1", "phase2", "phasediff", "sbref"}  # a fourth axis of time or direction, or a field map
LABELS = ("dseg", "mask")
OF_A_DERIVATIVE = {"desc", "space", "label", "res", "den", "seg", "atlas", "hemi"}  # entities that an image has no share in
DAYS = ("days_since_first", "session_days", "days")


@SOURCES.register("bids")
def bids(root: Path, *, modalities: tuple[str, ...] | None = None, derivative: str | None = None, allow_outside: bool = False) -> Manifest:
    """Read a BIDS dataset of 3-D images: ``sub-ID/[ses-ID/]anat/..._SUFFIX.nii.gz``.

    modalities  suffixes to take, as T1w or FLAIR (default: all but series in time or direction, which are counted)
    derivative  the folder of `derivatives/` whose ..._dseg or ..._mask files are the labels (default: the only one there is)

    The columns of participants.tsv become metadata; those of sub-ID_sessions.tsv too, with days from the first
    visit out of a column days_since_first or the dates of acq_time. BIDS does not say which scans share world
    millimetres, so each scan is a frame of its own; a csv manifest can say more.
    Source: Gorgolewski et al. 2016, The Brain Imaging Data Structure.

    Raises DataError where there is no subject, no image, or more than one derivative to choose from.
    """
    subjects = sorted(path for path in root.glob("sub-*") if path.is_dir())
    if not subjects:
        raise DataError(f"{root}: no folder sub-* there; a BIDS root holds dataset_description.json, participants.tsv and sub-*/")
    participants, notes = _participants(root, {path.name for path in subjects})
    labels = _labels(root, derivative)
    rows, left_out = [], Counter[str]()
    for subject in subjects:
        sessions = _sessions(subject)
        for path in _volumes(subject):
            name = _Name.of(path)
            if name.suffix in LEFT_OUT or (modalities is not None and name.suffix not in modalities):
                left_out[name.suffix] += 1
                continue
            session = name.entities.get("ses", "1")
            rows.append(
                {"scan": name.stem, "patient": subject.name, "session": session, "modality": name.suffix}
                | {"path": str(path.relative_to(root)), "label": labels.get(name.matching(), "")}
                | participants.get(subject.name, {})
                | sessions.get(session, {})
            )
    if not rows:
        raise DataError(f"{root}: no image is left of {dict(left_out)}; modalities = {modalities}")
    notes += [f"{count} files *_{suffix} are not taken" for suffix, count in sorted(left_out.items())]
    made = Manifest.of(pd.DataFrame(rows), root, _label_names(root, derivative), outside=allow_outside)
    return Manifest(made.table, made.root, made.label_names, made.outside, (*made.notes, *notes))


class _Name:
    """A file's name taken apart: ``sub-01_ses-2_acq-x_T1w.nii.gz``."""

    def __init__(self, stem: str, entities: dict[str, str], suffixes: tuple[str, ...]):
        self.stem, self.entities, self.suffixes = stem, entities, suffixes

    @staticmethod
    def of(path: Path) -> _Name:
        stem = re.sub(r"\.nii(\.gz)?$", "", path.name)
        parts = [part.split("-", 1) for part in stem.split("_")]
        suffixes = tuple(part[0] for part in parts if len(part) == 1)
        return _Name(stem, {part[0]: part[1] for part in parts if len(part) == 2}, suffixes)

    @property
    def suffix(self) -> str:
        return self.suffixes[-1] if self.suffixes else "unknown"

    def matching(self) -> tuple[str, ...]:
        """What an image and its label have in common: the entities that say which image, and the image's suffix."""
        entities = [f"{key}-{value}" for key, value in sorted(self.entities.items()) if key not in OF_A_DERIVATIVE]
        return (*entities, *(suffix for suffix in self.suffixes if suffix not in LABELS))


def _volumes(subject: Path) -> list[Path]:
    """Files of a subject, in folders of a session or without one; links are followed."""
    folders = _folders(subject)
    folders += [inner for session in folders if os.path.basename(session).startswith("ses-") for inner in _folders(session)]
    files = [entry for folder in folders for entry in os.scandir(folder)]
    return sorted(Path(entry.path) for entry in files if entry.name.endswith(VOLUMES) and entry.name.startswith("sub-"))


def _folders(folder: str | Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.path for entry in entries if entry.is_dir()]


def _participants(root: Path, subjects: set[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    path = root / "participants.tsv"
    if not path.exists():
        return {}, ["there is no participants.tsv, so scans carry no age, sex or group"]
    table = read_table(path)
    if "participant_id" not in table:
        raise DataError(f"{path}:1: the column participant_id is missing; there are {list(table.columns)}")
    ids = table["participant_id"].where(table["participant_id"].str.startswith("sub-"), "sub-" + table["participant_id"])
    if ids.duplicated().any():
        raise DataError(f"{path}: {ids[ids.duplicated()].iloc[0]} stands there twice; keep one row")
    notes = []
    for who, what in (
        (subjects - set(ids), "have no row in participants.tsv"),
        (set(ids) - subjects, "of participants.tsv have no folder"),
    ):
        if who:
            notes.append(f"{len(who)} subjects {what}: {', '.join(sorted(who)[:5])}")
    columns = table.drop(columns="participant_id")
    return dict(zip(ids, columns.to_dict("records"), strict=True)), notes


def _sessions(subject: Path) -> dict[str, dict[str, str]]:
    """Session -> its columns, days from the first visit among them where the table has days or dates."""
    path = subject / f"{subject.name}_sessions.tsv"
    if not path.exists():
        return {}
    names, cells = read_rows(path)  # plain rows: a data frame a subject takes longer than all else
    if "session_id" not in names:
        raise DataError(f"{path}:1: the column session_id is missing; there are {names}")
    rows = [dict(zip(names, row, strict=True)) for row in cells]
    days = next((column for column in DAYS if column in names), None)
    if days is not None:
        for row in rows:
            row["session_days"] = row.pop(days)
    elif "acq_time" in names:
        for row, day in zip(rows, _days([row["acq_time"] for row in rows], path), strict=True):
            row["session_days"] = day
    return {row.pop("session_id").removeprefix("ses-"): {n: v for n, v in row.items() if n != "acq_time"} for row in rows}


def _days(times: Sequence[str], path: Path) -> list[str]:
    """Whole days from the first of some dates; "" where a date is missing."""
    dates = [None if time in MISSING else _date(time, path) for time in times]
    first = min((date for date in dates if date is not None), default=None)
    return ["" if date is None or first is None else str((date - first).days) for date in dates]


def _date(time: str, path: Path) -> pd.Timestamp:
    date = pd.to_datetime(time, errors="coerce", format="ISO8601")
    if pd.isna(date):
        raise DataError(f"{path}: acq_time {time!r} is no date as 2001-02-28T14:00:00; correct it, or write n/a")
    return date.tz_localize(None)  # with and without a zone cannot be compared


def _derivative(root: Path, derivative: str | None) -> Path | None:
    """The folder whose label maps are used, or None where there is none."""
    found = {path.name: path for path in sorted((root / "derivatives").glob("*")) if path.is_dir() and any(_label_maps(path))}
    if derivative is None and len(found) > 1:
        raise DataError(f"{root / 'derivatives'}: labels lie in {', '.join(found)}; say which with derivative=NAME")
    if derivative is None:
        return next(iter(found.values()), None)
    if derivative not in found:
        raise DataError(f"{root / 'derivatives' / derivative}: no *_dseg or *_mask there; there are {', '.join(found) or 'none'}")
    return found[derivative]


def _label_maps(folder: Path) -> Iterable[Path]:
    return (path for subject in sorted(folder.glob("sub-*")) for path in _volumes(subject) if _Name.of(path).suffix in LABELS)


def _labels(root: Path, derivative: str | None) -> dict[tuple[str, ...], str]:
    """What an image is called -> the path of its label map. DataError where two would fit one image."""
    folder = _derivative(root, derivative)
    labels: dict[tuple[str, ...], str] = {}
    for path in _label_maps(folder) if folder else ():
        key = _Name.of(path).matching()
        if key in labels:
            raise DataError(f"{path}: {root / labels[key]} is a label of the same image; keep one of them in this derivative")
        labels[key] = str(path.relative_to(root))
    return labels


def _label_names(root: Path, derivative: str | None) -> dict[int, str]:
    """Class -> name out of a *dseg.tsv of the derivative (columns index, name), where there is one."""
    folder = _derivative(root, derivative)
    tables = sorted(folder.glob("*dseg.tsv")) if folder else []
    if not tables:
        return {}
    table = read_table(tables[0])
    if not {"index", "name"} <= set(table.columns):
        raise DataError(f"{tables[0]}:1: the columns index and name are needed; there are {list(table.columns)}")
    try:
        return {0: "background"} | {int(index): name for index, name in zip(table["index"], table["name"], strict=True)}
    except ValueError as error:
        raise DataError(f"{tables[0]}: {error}; index holds whole numbers") from None
