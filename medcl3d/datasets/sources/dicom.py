"""Raw DICOM: slices grouped into series by their headers, written as one NIfTI file per series."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import pandas as pd

from medcl3d.config.field_types import PositiveInt
from medcl3d.core.errors import DataError
from medcl3d.core.notes import Counted
from medcl3d.core.warning_summary import summarise_warnings
from medcl3d.datasets.dicom.constant import differences, refuse_partial_rescaling
from medcl3d.datasets.dicom.files import PERSON, FoundSeries, find_series, is_selected
from medcl3d.datasets.dicom.mixed import Part, volumes_of
from medcl3d.datasets.dicom.series import PetUnits, Series, refusing, write_series
from medcl3d.datasets.dicom.slices import slices_of
from medcl3d.datasets.dicom.tilt import Tilt
from medcl3d.datasets.id_spelling import alike, is_truncated_number
from medcl3d.datasets.manifest import Manifest
from medcl3d.datasets.missing_ids import is_missing_id
from medcl3d.datasets.pseudonymise import id_hasher
from medcl3d.datasets.sources import SOURCES
from medcl3d.io.atomic import write_json
from medcl3d.io.progress import track

SCHEMA = 2
LONGEST = 90  # bytes of the patient's id in a file name
Mixed = Literal["split", "error"]
Row = dict[str, str]  # of the manifest


@SOURCES.register("dicom")
def dicom(
    root: Path,
    raw: Path | None,
    *,
    modalities: tuple[str, ...] | None = None,
    min_slices: PositiveInt = 3,
    pet: PetUnits = "suv",
    tilt: Tilt = "error",
    mixed: Mixed = "split",
    patients: Literal["header", "folder"] = "header",
    hash_ids: bool = False,
) -> Manifest:
    """Read all DICOM series below a folder, for any file names. Needs the extra `dicom`.

    root        the folder; series are distinguished by SeriesInstanceUID (by folder if it is empty), DICOMDIR
                is not needed
    raw         folder for one NIfTI file per series (`prepare` chooses it); written once, and again if slices
                changed. None: nothing is written, and the manifest holds the series as `unwritten`
    modalities  CT, MR, PET, ... to read (default: all that have voxels in space)
    min_slices  series with fewer slices, as scouts, are skipped
    pet         suv (by body weight; refused if the headers do not allow it), or raw (stored values)
    tilt        for CT with a tilted gantry: error, or resample (upright, linear, air outside)
    mixed       several volumes under one UID: split (by ImageType, echo, time, stack or AcquisitionNumber, if
                that leaves whole volumes), or error
    patients    patient of a series: header (PatientID, else the first folder below the root), or folder
    hash_ids    patients and UIDs as keyed hashes, without dates, descriptions and file names; the key stays
                in `raw`/.hash_key, and deleting it makes the ids irreversible

    Slices are sorted by their position along the normal; CT is in HU. Columns: patient, session (studies by
    date), session_days, frame (FrameOfReferenceUID), study_date, study, series, description, and part if a
    series was split. One PatientID with another birth date, sex or issuer is another patient, distinguished
    by the folder. Names are never read. A field that some files of a series lack does not split it; if values
    depend on that field (RescaleSlope), the series is refused. Other fields that differ within a series are
    reported.

    A series that is not a regular grid (a slice missing or duplicated, planes that vary) or has wrong headers
    is refused, and the others are read. Raises DataError if there is no series at all.
    """
    hash_id: Callable[[str], str] = id_hasher(raw) if hash_ids else str
    found, skipped, notes = find_series(root, redact=hash_ids)
    series = [one for one in found if is_selected(one, modalities, min_slices, skipped)]
    if not series:
        raise DataError(root, "no DICOM series", "; ".join(skipped.notes()) or "the folder is empty")
    of_headers = patients == "header"
    owners = _patients_of(series, skipped, notes, hash_id) if of_headers else [one.folder for one in series]
    if hash_ids and (same := alike(set(owners))):  # hashes no longer show it
        count = f"{len(same)} groups of patient ids"
        notes.append(f"{count} differ only in spelling and may be one person; use one spelling per id")
    rows, scans, faults = list[Row](), dict[str, Series](), dict[str, str]()
    differing: list[tuple[str, list[str]]] = []
    for row, one in zip(_rows(series, owners, hash_id, hash_ids), series, strict=True):
        try:
            with refusing(one.called, hash_ids):
                parts = _parts(one, min_slices, mixed, skipped, notes)
        except DataError as error:
            rows.append(_with_id(row, hash_id(one.key)))
            faults[rows[-1]["scan"]] = str(error)
            continue
        for part, label in zip(parts, _labels(parts, hash_ids), strict=True):
            key, about = (f"{one.key}/{label}", {"part": label}) if label else (one.key, {})
            rows.append(_with_id({**row, **about}, hash_id(key)))
            scans[rows[-1]["scan"]] = Series(part.slices, one.called, part.warnings, pet, tilt)
            differ = differences(part.slices)
            name = (one.called or "one") + (f" ({label})" if label else "")
            differing.append((name, [differ] if differ else []))
    table = pd.DataFrame(rows)
    if "part" in table:
        table["part"] = table["part"].fillna("whole")
    made = Manifest.of(table, root if raw is None else raw)
    paths = dict(zip(made.table["scan"], made.table["path"], strict=True))
    for scan, volume in track(scans.items(), "reading series") if raw is not None else ():
        try:
            notes += [f"{scan}: {warning}" for warning in write_if_changed(made.root / paths[scan], volume)]
        except DataError as error:
            faults[scan] = str(error)
    summary = summarise_warnings(differing, len(differing), "series")
    notes = [*made.notes, *skipped.notes(), *notes, *summary]
    return replace(made, notes=tuple(notes), faults=faults, unwritten=scans if raw is None else {})


def _parts(
    series: FoundSeries, min_slices: int, mixed: Mixed, skipped: Counted, notes: list[str]
) -> list[Part]:
    """The volumes of a series. DataError if it has none."""
    if series.fault:
        raise DataError(series.fault)
    slices = []
    for one in (one for header in series.headers for one in slices_of(header)):
        if "LOCALIZER" in one.header.words("ImageType"):
            skipped.add("localizers were skipped", one.name)
        else:
            slices.append(one)
    parts, note = volumes_of(slices, min_slices)
    if parts[0].marks and mixed == "error":
        raise DataError(problem=note, remedy="set mixed=split, or move each volume to its own series")
    if note:
        notes.append(f"{series.called}: {note}" if series.called else f"a series {note}")
    for part in parts:
        refuse_partial_rescaling(part.slices)
    return parts


def _labels(parts: Sequence[Part], hash_ids: bool) -> list[str]:
    """Label of each volume of a series, "" if it is whole; with `hash_ids`, without text from the file."""
    if not parts[0].marks:
        return [""]
    if hash_ids:
        by = " and ".join(name for name, _ in parts[0].marks)
        return [f"{number} of {len(parts)} by {by}" for number in range(1, len(parts) + 1)]
    return [", ".join(f"{name} {text or 'none'}" for name, text in part.marks) for part in parts]


def _patients_of(
    series: Sequence[FoundSeries], skipped: Counted, notes: list[str], hash_id: Callable[[str], str]
) -> list[str]:
    """The patient of each series: its id, with the folder if several people share one id."""
    people: dict[str, set[tuple[str, ...]]] = {}
    ids = [_patient_id(one, skipped) for one in series]
    for name, one in zip(ids, series, strict=True):
        people.setdefault(name, set()).add(tuple(one.text(name) for name in PERSON))
    shared = {
        name
        for name, known in people.items()
        if any(a and b and a != b for p in known for q in known for a, b in zip(p, q, strict=True))
    }
    patients = []
    folders: dict[str, set[str]] = {}
    for name, one in zip(ids, series, strict=True):
        patient = f"{name}@{one.folder}" if name in shared and name else name or one.folder
        folders.setdefault(patient, set()).add(one.folder)
        patients.append(patient)
    for name in sorted(shared - {""}):
        why = "is shared by several people (birth date, sex or issuer differ)"
        notes.append(f"PatientID {hash_id(name)} {why}; distinguished by their folders")
    for patient, places in folders.items():
        if len(places) > 1:
            some = f"in {len(places)} folders ({', '.join(map(hash_id, sorted(places)[:3]))})"
            remedy = "set patients=folder if each folder is another patient"
            notes.append(f"patient {hash_id(patient)} is {some} and counts as one; {remedy}")
    return patients


def _patient_id(series: FoundSeries, skipped: Counted) -> str:
    """A series' PatientID; "" if it is empty or a placeholder. Both cases are counted."""
    name = series.text("PatientID")
    if name and not is_missing_id(name) and not is_truncated_number(name):
        return name
    what = "a placeholder or truncated number as" if name else "no"
    skipped.add(f"series have {what} PatientID; their first folder is the patient", series.called)
    return ""


def _rows(
    series: Sequence[FoundSeries], patients: Sequence[str], hash_id: Callable[[str], str], hash_ids: bool
) -> list[Row]:
    """The manifest's row of each series."""
    dates: dict[tuple[str, str], set[str]] = {}
    for patient, one in zip(patients, series, strict=True):
        if date := one.text("StudyDate"):
            dates.setdefault((patient, one.text("StudyInstanceUID")), set()).add(date)

    def study_of(patient: str, one: FoundSeries) -> tuple[str, str]:
        """Date and UID; a series without a date takes that of its study."""
        uid = one.text("StudyInstanceUID")
        known = dates.get((patient, uid), set()) if uid else set()
        return one.text("StudyDate") or (min(known) if len(known) == 1 else ""), uid

    studies: dict[str, set[tuple[str, str]]] = {}
    for patient, one in zip(patients, series, strict=True):
        studies.setdefault(patient, set()).add(study_of(patient, one))
    rows = []
    for patient, one in zip(patients, series, strict=True):
        study = study_of(patient, one)
        name, frame = hash_id(patient), one.text("FrameOfReferenceUID")
        row = {
            "patient": name,
            "session": str(1 + sorted(studies[patient]).index(study)),
            "session_days": _days(study[0], [date for date, _ in studies[patient]]),
            "modality": one.modality,
            # Per patient: a copied UID must not join two patients.
            "frame": f"{name}/{hash_id(frame)}" if frame else "",
            "study": hash_id(study[1]),
            "series": hash_id(one.text("SeriesInstanceUID")),
        }
        if not hash_ids:
            row |= {"study_date": study[0], "description": one.text("SeriesDescription")}
        rows.append(row)
    return rows


def _with_id(row: Row, key: str) -> Row:
    """A row with a scan id and a file name that are unique to the series."""
    patient = row["patient"]
    if len(quote(patient)) > LONGEST:
        patient = hashlib.sha256(patient.encode()).hexdigest()[:12]
    scan = f"{patient}_{row['session']}_{row['modality']}_{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    return {"scan": scan, "path": quote(f"{scan}.nii.gz", safe=" +=@,"), **row}


def _days(date: str, dates: Sequence[str]) -> str:
    """Days from the first of a patient's studies, "" if a date is missing or invalid."""
    try:
        times = [datetime.strptime(text, "%Y%m%d") for text in dates]
        return str((datetime.strptime(date, "%Y%m%d") - min(times)).days)
    except ValueError:
        return ""


def write_if_changed(path: Path, series: Series) -> list[str]:
    """Write a series unless a file of the same slices exists; returns its warnings. DataError."""
    state = {"schema": SCHEMA, "pet": series.pet, "tilt": series.tilt, "slices": series.state()}
    beside = path.with_name(path.name.removesuffix(".nii.gz") + ".json")
    try:
        known = json.loads(beside.read_text())
        if path.exists() and {name: known.get(name) for name in state} == state:
            return list(known["warnings"])
    except (OSError, ValueError, KeyError, AttributeError):
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        warnings = write_series(series, path)
    except DataError:
        path.unlink(missing_ok=True)
        beside.unlink(missing_ok=True)
        raise
    write_json(beside, {**state, "warnings": warnings})
    return list(warnings)
