"""Raw DICOM: slices grouped into series by their headers, written as one NIfTI file per series."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    hash_id = id_hasher(raw) if hash_ids else _unchanged
    found, skipped, notes = find_series(root, redact=hash_ids)
    series = [one for one in found if is_selected(one, modalities, min_slices, skipped)]
    if not series:
        raise DataError(root, "no DICOM series", "; ".join(skipped.notes()) or "the folder is empty")
    owners = (
        [one.folder for one in series]
        if patients == "folder"
        else _patients_of(series, skipped, notes, hash_id)
    )
    if hash_ids and (same := alike(set(owners))):  # hashes no longer show it
        notes.append(
            f"{len(same)} groups of patient ids differ only in spelling and may be one person; use one "
            "spelling per id"
        )
    volumes = _Volumes(pet, tilt, mixed, min_slices, hash_id, hash_ids, skipped, notes)
    for row, one in zip(_rows(series, owners, hash_id, hash_ids), series, strict=True):
        volumes.add(row, one)
    scans, faults, differing = volumes.scans, volumes.faults, volumes.differing
    made = Manifest.of(_table(volumes.rows), root if raw is None else raw)
    if raw is not None:
        for scan, warning in _write_all(
            raw, dict(zip(made.table["scan"], made.table["path"], strict=True)), scans, faults
        ):
            notes.append(f"{scan}: {warning}")
    unwritten = scans if raw is None else {}
    summary = summarise_warnings(differing, len(differing), "series")
    notes = [*made.notes, *skipped.notes(), *notes, *summary]
    return replace(made, notes=tuple(notes), faults=faults, unwritten=unwritten)


@dataclass
class _Volumes:
    """Volumes of all series: rows of the manifest, scan -> series or fault, and differing fields by name."""

    pet: PetUnits
    tilt: Tilt
    mixed: Mixed
    min_slices: int
    hash_id: Callable[[str], str]
    hash_ids: bool
    skipped: Counted
    notes: list[str]
    rows: list[dict[str, str]] = field(default_factory=list)
    scans: dict[str, Series] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    differing: list[tuple[str, list[str]]] = field(default_factory=list)

    def add(self, row: dict[str, str], one: FoundSeries) -> None:
        """Add the volumes of a series, or its fault. row: the manifest's row of the series."""
        try:
            with refusing(one.called, self.hash_ids):
                parts = _parts(one, self.min_slices, self.mixed, self.skipped, self.notes)
        except DataError as error:
            self.faults[self._scan(row, one.key)] = str(error)
            return
        for part, label in zip(parts, _labels(parts, self.hash_ids), strict=True):
            key = f"{one.key}/{label}" if label else one.key
            scan = self._scan({**row, **({"part": label} if label else {})}, key)
            self.scans[scan] = Series(part.slices, one.called, part.warnings, self.pet, self.tilt)
            differ = differences(part.slices)
            name = (one.called or "one") + (f" ({label})" if label else "")
            self.differing.append((name, [differ] if differ else []))

    def _scan(self, row: dict[str, str], key: str) -> str:
        """Add a row and return its scan id."""
        self.rows.append(_with_id(row, self.hash_id(key)))
        return self.rows[-1]["scan"]


def _parts(
    series: FoundSeries, min_slices: int, mixed: Mixed, skipped: Counted, notes: list[str]
) -> list[Part]:
    """The volumes of a series. DataError if it has none."""
    if series.fault:
        raise DataError(series.fault)
    slices = [one for header in series.headers for one in slices_of(header)]
    of_volumes = [one for one in slices if "LOCALIZER" not in one.header.words("ImageType")]
    for one in slices:
        if "LOCALIZER" in one.header.words("ImageType"):
            skipped.add("localizers were skipped", one.name)
    parts, note = volumes_of(of_volumes, min_slices)
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
        return [
            f"{number} of {len(parts)} by {' and '.join(name for name, _ in part.marks)}"
            for number, part in enumerate(parts, start=1)
        ]
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
        notes.append(
            f"PatientID {hash_id(name)} is shared by several people (birth date, sex or issuer differ); "
            "distinguished by their folders"
        )
    for patient, places in folders.items():
        if len(places) > 1:
            some = ", ".join(hash_id(place) for place in sorted(places)[:3])
            notes.append(
                f"patient {hash_id(patient)} is in {len(places)} folders ({some}) and counts as one; "
                "set patients=folder if each folder is another patient"
            )
    return patients


def _patient_id(series: FoundSeries, skipped: Counted) -> str:
    """A series' PatientID; "" if it is empty or a placeholder. Both cases are counted."""
    name = series.text("PatientID")
    if not name:
        skipped.add("series have no PatientID; their first folder is the patient", series.called)
    elif is_missing_id(name) or is_truncated_number(name):
        skipped.add(
            "series have a placeholder or truncated number as PatientID; their first folder is the patient",
            series.called,
        )
        return ""
    return name


def _rows(
    series: Sequence[FoundSeries], patients: Sequence[str], hash_id: Callable[[str], str], hash_ids: bool
) -> list[dict[str, str]]:
    """The manifest's row of each series."""
    dates: dict[tuple[str, str], set[str]] = {}
    for patient, one in zip(patients, series, strict=True):
        dates.setdefault((patient, one.text("StudyInstanceUID")), set()).update(
            {one.text("StudyDate")} - {""}
        )

    def study_of(patient: str, one: FoundSeries) -> tuple[str, str]:
        uid = one.text("StudyInstanceUID")
        known = dates[patient, uid] if uid else set()  # a series without a date takes that of its study
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


def _with_id(row: dict[str, str], key: str) -> dict[str, str]:
    """A row with a scan id and a file name that are unique to the series."""
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
    """Days from the first of a patient's studies, "" if a date is missing or invalid."""
    try:
        times = [datetime.strptime(text, "%Y%m%d") for text in dates]
        return str((datetime.strptime(date, "%Y%m%d") - min(times)).days)
    except ValueError:
        return ""


def _write_all(
    raw: Path, paths: Mapping[str, str], scans: Mapping[str, Series], faults: dict[str, str]
) -> Iterator[tuple[str, str]]:
    """Write all series. Yields each scan's warnings, and adds unreadable series to `faults`."""
    for scan, one in track(scans.items(), "reading series"):
        try:
            yield from ((scan, warning) for warning in _write(raw / paths[scan], one))
        except DataError as error:
            faults[scan] = str(error)


def _write(path: Path, series: Series) -> list[str]:
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


def _unchanged(text: str) -> str:
    return text
