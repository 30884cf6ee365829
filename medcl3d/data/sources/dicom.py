"""DICOM as it lies on a disk: folders of slices, told apart by their headers, written out as one NIfTI file a series."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import pandas as pd
from rich.console import Console
from rich.progress import track

from medcl3d.data.atomic import write_json
from medcl3d.data.dicom.constant import differences, refuse_values_in_part
from medcl3d.data.dicom.files import PERSON, FoundSeries, find_series, is_taken
from medcl3d.data.dicom.mixed import Part, volumes_of
from medcl3d.data.dicom.series import PetUnits, Series, refusing, write_series
from medcl3d.data.dicom.slices import slices_of
from medcl3d.data.dicom.tilt import Tilt
from medcl3d.data.hidden_ids import hider
from medcl3d.data.id_spelling import alike, is_cut_number
from medcl3d.data.manifest import Manifest
from medcl3d.data.missing_text import is_no_id
from medcl3d.data.notes import Counted
from medcl3d.data.sources import SOURCES
from medcl3d.data.told import warnings_told
from medcl3d.errors import DataError
from medcl3d.registry import Count

SCHEMA = 2
LONGEST = 90  # bytes of a file's name that the patient's id may take
Mixed = Literal["split", "error"]


@SOURCES.register("dicom")
def dicom(
    root: Path,
    raw: Path | None,
    *,
    modalities: tuple[str, ...] | None = None,
    min_slices: Count = 3,
    pet: PetUnits = "suv",
    tilt: Tilt = "error",
    mixed: Mixed = "split",
    patients: Literal["header", "folder"] = "header",
    hash_ids: bool = False,
) -> Manifest:
    """Read all DICOM series below a folder, whatever its files are called. Needs the extra `dicom`.

    root        the folder; series are told apart by SeriesInstanceUID (by folder where that is empty), DICOMDIR is not needed
    raw         where each series is written as a NIfTI file (`prepare` chooses it); done once, again where slices changed. None:
                nothing is written, and the manifest holds the series as `unwritten`
    modalities  CT, MR, PET, ... to take (default: all that have voxels in space)
    min_slices  series of fewer are passed over, as scouts are
    pet         suv (by body weight; refused where headers do not allow it), or raw (as stored)
    tilt        of a CT whose gantry was tilted: error, or resample (upright, linearly, air outside)
    mixed       several volumes under one UID: split (by ImageType, echo, time, stack or AcquisitionNumber, where that leaves whole
                volumes), or error
    patients    whose a series is: header (PatientID, else the first folder below the root), or folder
    hash_ids    patients and UIDs as keyed hashes, without dates, descriptions and names of files; the key stays in
                `raw`/.hash_key: whoever deletes it makes the ids irreversible

    Slices are ordered by their place along the normal; CT comes in HU. Columns: patient, session (studies by date),
    session_days, frame (FrameOfReferenceUID), study_date, study, series, description, and part where a series was split. One
    PatientID with another birth date, sex or issuer is another patient, told apart by the folder. Names are never read. A field that
    some files of a series lack does not split it; if values depend on that field (RescaleSlope), the series is refused. Other fields
    that differ within a series are reported.

    A series that is no regular grid (a slice missing or twice, planes that vary), or whose headers are wrong, is refused by name,
    the others are read. Raises DataError where there is no series at all.
    """
    hide = hider(raw) if hash_ids else _open
    found, seen, notes = find_series(root, hidden=hash_ids)
    series = [one for one in found if is_taken(one, modalities, min_slices, seen)]
    if not series:
        raise DataError(f"{root}: no DICOM series there; {'; '.join(seen.notes()) or 'it is empty'}")
    told = [one.folder for one in series] if patients == "folder" else _tell_patients_apart(series, seen, notes, hide)
    if hash_ids and (same := alike(set(told))):  # hashes show it no more
        notes.append(f"{len(same)} patients may be two people or one, by ids that differ in spelling alone; write each id in one way")
    odd: list[tuple[str, list[str]]] = []
    scans: dict[str, Series] = {}
    rows, faults = list[dict[str, str]](), dict[str, str]()
    for row, one in zip(_rows(series, told, hide, hash_ids), series, strict=True):
        try:
            with refusing(one.called, hash_ids):
                parts = _parts(one, min_slices, mixed, seen, notes)
        except DataError as error:
            rows.append(_named(row, hide(one.key)))
            faults[rows[-1]["scan"]] = str(error)
            continue
        for part, label in zip(parts, _labels(parts, hash_ids), strict=True):
            rows.append(_named({**row, **({"part": label} if label else {})}, hide(f"{one.key}/{label}" if label else one.key)))
            scans[rows[-1]["scan"]] = Series(part.slices, one.called, part.warnings, pet, tilt)
            differ = differences(part.slices)
            odd.append(((one.called or "one") + (f" ({label})" if label else ""), [differ] if differ else []))
    made = Manifest.of(_table(rows), root if raw is None else raw)
    if raw is not None:
        for scan, warning in _all_written(raw, dict(zip(made.table["scan"], made.table["path"], strict=True)), scans, faults):
            notes.append(f"{scan}: {warning}")
    unwritten = scans if raw is None else {}
    told = warnings_told(odd, len(odd), "series")
    return replace(made, notes=(*made.notes, *seen.notes(), *notes, *told), faults=faults, unwritten=unwritten)


def _parts(series: FoundSeries, min_slices: int, mixed: Mixed, seen: Counted, notes: list[str]) -> list[Part]:
    """The volumes of a series. DataError where it is none."""
    if series.fault:
        raise DataError(series.fault)
    slices = [one for header in series.headers for one in slices_of(header)]
    of_volumes = [one for one in slices if "LOCALIZER" not in one.header.words("ImageType")]
    for one in slices:
        if "LOCALIZER" in one.header.words("ImageType"):
            seen.add("localizers were passed over", one.name)
    parts, note = volumes_of(of_volumes, min_slices)
    if parts[0].marks and mixed == "error":
        raise DataError(f"{note}; set mixed=split, or move them to series of their own")
    if note:
        notes.append(f"{series.called}: {note}" if series.called else f"a series {note}")
    for part in parts:
        refuse_values_in_part(part.slices)
    return parts


def _labels(parts: Sequence[Part], hash_ids: bool) -> list[str]:
    """What to call each volume of a series, "" where it is the whole; under `hash_ids` without a text of the file."""
    if not parts[0].marks:
        return [""]
    if hash_ids:
        return [f"{number} of {len(parts)} by {' and '.join(name for name, _ in part.marks)}" for number, part in enumerate(parts, start=1)]
    return [", ".join(f"{name} {text or 'none'}" for name, text in part.marks) for part in parts]


def _tell_patients_apart(series: Sequence[FoundSeries], seen: Counted, notes: list[str], hide: Callable[[str], str]) -> list[str]:
    """The patient of each series: its id, with the folder where one id means several people."""
    people: dict[str, set[tuple[str, ...]]] = {}
    ids = [_patient_id(one, seen) for one in series]
    for name, one in zip(ids, series, strict=True):
        people.setdefault(name, set()).add(tuple(one.text(name) for name in PERSON))
    several = {
        name for name, known in people.items() if any(a and b and a != b for p in known for q in known for a, b in zip(p, q, strict=True))
    }
    told = []
    folders: dict[str, set[str]] = {}
    for name, one in zip(ids, series, strict=True):
        patient = f"{name}@{one.folder}" if name in several and name else name or one.folder
        folders.setdefault(patient, set()).add(one.folder)
        told.append(patient)
    for name in sorted(several - {""}):
        notes.append(f"PatientID {hide(name)} is claimed by several people (birth date, sex or issuer differ); told apart by their folders")
    for patient, places in folders.items():
        if len(places) > 1:
            some = ", ".join(hide(place) for place in sorted(places)[:3])
            notes.append(
                f"patient {hide(patient)} lies in {len(places)} folders ({some}) and counts as one; set patients=folder if they are several"
            )
    return told


def _patient_id(series: FoundSeries, seen: Counted) -> str:
    """A series' PatientID; "" if it has none, or one that many strangers share, which is counted."""
    name = series.text("PatientID")
    if not name:
        seen.add("series have no PatientID, so their first folder counts as the patient", series.called)
    elif is_no_id(name) or is_cut_number(name):
        seen.add(
            "series have text for a missing value, or a cut number, as PatientID, so their first folder counts as the patient",
            series.called,
        )
        return ""
    return name


def _rows(series: Sequence[FoundSeries], told: Sequence[str], hide: Callable[[str], str], hash_ids: bool) -> list[dict[str, str]]:
    """What is known of each series, in the columns of a manifest."""
    dates: dict[tuple[str, str], set[str]] = {}
    for patient, one in zip(told, series, strict=True):
        dates.setdefault((patient, one.text("StudyInstanceUID")), set()).update({one.text("StudyDate")} - {""})

    def study_of(patient: str, one: FoundSeries) -> tuple[str, str]:
        uid = one.text("StudyInstanceUID")
        known = dates[patient, uid] if uid else set()  # a series without a date is of its study's, if that has one
        return one.text("StudyDate") or (min(known) if len(known) == 1 else ""), uid

    studies: dict[str, set[tuple[str, str]]] = {}
    for patient, one in zip(told, series, strict=True):
        studies.setdefault(patient, set()).add(study_of(patient, one))
    rows = []
    for patient, one in zip(told, series, strict=True):
        study = study_of(patient, one)
        name, frame = hide(patient), one.text("FrameOfReferenceUID")
        row = {
            "patient": name,
            "session": str(1 + sorted(studies[patient]).index(study)),
            "session_days": _days(study[0], [date for date, _ in studies[patient]]),
            "modality": one.modality,
            "frame": f"{name}/{hide(frame)}" if frame else "",  # within a patient: a copied UID joins nobody else
            "study": hide(study[1]),
            "series": hide(one.text("SeriesInstanceUID")),
        }
        if not hash_ids:
            row |= {"study_date": study[0], "description": one.text("SeriesDescription")}
        rows.append(row)
    return rows


def _named(row: dict[str, str], key: str) -> dict[str, str]:
    """A row with an id, and the name of a file, that no other series has."""
    patient = row["patient"]
    if len(quote(patient)) > LONGEST:
        patient = hashlib.sha256(patient.encode()).hexdigest()[:12]
    scan = f"{patient}_{row['session']}_{row['modality']}_{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    return {"scan": scan, "path": quote(f"{scan}.nii.gz", safe=" +=@,"), **row}


def _table(rows: Sequence[dict[str, str]]) -> pd.DataFrame:
    table = pd.DataFrame(rows)
    if "part" in table:
        table["part"] = table["part"].fillna("whole")
    return table


def _days(date: str, dates: Sequence[str]) -> str:
    """Days from the first of a patient's studies, "" where a date is missing or wrong."""
    try:
        times = [datetime.strptime(text, "%Y%m%d") for text in dates]
        return str((datetime.strptime(date, "%Y%m%d") - min(times)).days)
    except ValueError:
        return ""


def _all_written(raw: Path, paths: Mapping[str, str], scans: Mapping[str, Series], faults: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Write all series; yields the warnings of each scan, and puts those that cannot be read among the faults."""
    console = Console(stderr=True)
    for scan, one in track(scans.items(), "reading series", console=console, disable=not console.is_terminal):
        try:
            yield from ((scan, warning) for warning in _written(raw / paths[scan], one))
        except DataError as error:
            faults[scan] = str(error)


def _written(path: Path, series: Series) -> list[str]:
    """Write a series, unless it is there from the same slices; its warnings. DataError where it is no volume."""
    made_of = {"schema": SCHEMA, "pet": series.pet, "tilt": series.tilt, "slices": series.state()}
    beside = path.with_name(path.name.removesuffix(".nii.gz") + ".json")
    try:
        known = json.loads(beside.read_text())
        if path.exists() and {name: known.get(name) for name in made_of} == made_of:
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
    write_json(beside, {**made_of, "warnings": warnings})
    return list(warnings)


def _open(text: str) -> str:
    return text
