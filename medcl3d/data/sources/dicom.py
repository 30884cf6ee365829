"""DICOM as it lies on a disk: folders of slices, told apart by their headers, written out as one NIfTI file a series."""

from __future__ import annotations

import gzip
import hashlib
import hmac
import json
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import nibabel
import pandas as pd
from rich.console import Console
from rich.progress import track

from medcl3d.data.atomic import replacing, write_json
from medcl3d.data.dicom_series import PetUnits, SeriesVolume, has_voxels, read_header, read_series
from medcl3d.data.manifest import Manifest
from medcl3d.data.sources import SOURCES
from medcl3d.data.walk import files_under
from medcl3d.errors import DataError
from medcl3d.registry import Count

SCHEMA = 1
MODALITIES = {"PT": "PET"}  # by what everybody else calls it
PERSON = ("IssuerOfPatientID", "PatientBirthDate", "PatientSex")  # what tells two people of one PatientID apart


@SOURCES.register("dicom")
def dicom(
    root: Path,
    raw: Path | None,
    *,
    modalities: tuple[str, ...] | None = None,
    min_slices: Count = 3,
    pet: PetUnits = "suv",
    patients: Literal["header", "folder"] = "header",
    hash_ids: bool = False,
) -> Manifest:
    """Read all DICOM series below a folder, whatever its files are called. Needs the extra `dicom`.

    root        the folder; series are told apart by SeriesInstanceUID (by folder where that is empty), DICOMDIR is not needed
    raw         where each series is written as a NIfTI file (`prepare` chooses it); done once, again where slices changed; None: nowhere
    modalities  CT, MR, PET, ... to take (default: all that have voxels in space)
    min_slices  series of fewer are passed over, as scouts are
    pet         suv (by body weight; refused where headers do not allow it), or raw (as stored)
    patients    whose a series is: header (PatientID, else the first folder below the root), or folder
    hash_ids    patients and UIDs as keyed hashes, without dates and descriptions; the key stays in `raw`/.hash_key: whoever
                deletes it makes the ids irreversible

    Slices are ordered by their place along the normal; CT comes in HU. Columns: patient, session (studies by date),
    session_days, frame (FrameOfReferenceUID), study_date, study, series, description. One PatientID with another birth
    date, sex or issuer is another patient, told apart by the folder. Names are never read.

    A series that is no regular grid (a slice missing or twice, a tilted gantry, planes that vary) is refused by name, the
    others are read. Raises DataError where there is no series at all.
    """
    counts, notes = Counter[str](), list[str]()
    hide = _hider(raw) if hash_ids else _open
    series = [s for s in _found(root, counts, notes, hash_ids) if _is_taken(s, modalities, min_slices, counts)]
    if not series:
        raise DataError(f"{root}: no DICOM series there; {'; '.join(_lines(counts)) or 'it is empty'}")
    told = [one.folder for one in series] if patients == "folder" else _tell_patients_apart(series, counts, notes, hide)
    rows, faults = _rows(series, told, hide, hash_ids), {}
    console = Console(stderr=True)
    work = list(zip(rows, series, strict=True))
    for row, one in track(work, "reading series", console=console, disable=not console.is_terminal):
        clear = _without_paths(one) if hash_ids else _open
        try:
            notes += [f"{row['scan']}: {clear(warning)}" for warning in _written(raw and raw / row["path"], one, pet)]
        except DataError as error:
            faults[row["scan"]] = clear(str(error))
    made = Manifest.of(pd.DataFrame(rows), raw or root)
    return Manifest(made.table, made.root, made.label_names, made.outside, (*made.notes, *_lines(counts), *notes), faults)


@dataclass
class _Series:
    """Files of one series; `folder` is the first folder below the root, `where` the one that its first file lies in."""

    key: str
    folder: str
    where: str
    files: list[tuple[Path, Any]] = field(default_factory=list)

    def text(self, name: str) -> str:
        """A field of the first header, "" where it is empty."""
        return str(self.files[0][1].get(name) or "").strip()

    @property
    def modality(self) -> str:
        return MODALITIES.get(self.text("Modality"), self.text("Modality") or "unknown")


def _found(root: Path, counts: Counter[str], notes: list[str], hash_ids: bool) -> list[_Series]:
    found: dict[str, _Series] = {}
    for path in files_under(root):
        try:
            header = read_header(root / path)
        except DataError as error:
            notes.append("a damaged DICOM file was left out" if hash_ids else str(error))
            continue
        if header is None:
            counts["files are no DICOM images"] += 1
        elif not has_voxels(header):
            counts[f"files of {header.get('Modality', 'unknown')} have no voxels in space"] += 1
        else:
            uid = str(header.get("SeriesInstanceUID") or "")
            if not uid:
                counts["files have no SeriesInstanceUID and were grouped by their folder"] += 1
                uid = f"{path.parent}/{header.get('Modality')}/{header.get('SeriesNumber')}"
            # After careless anonymisation a UID may be that of several people.
            uid = "/".join([uid, *(str(header.get(name) or "") for name in ("PatientID", *PERSON))])
            folder = path.parts[0] if len(path.parts) > 1 else root.resolve().name
            found.setdefault(uid, _Series(uid, folder, str((root / path).parent))).files.append((root / path, header))
    return [found[key] for key in sorted(found)]


def _is_taken(series: _Series, modalities: Sequence[str] | None, min_slices: int, counts: Counter[str]) -> bool:
    slices = sum(int(header.get("NumberOfFrames") or 1) for _, header in series.files)
    if modalities is not None and series.modality not in modalities:
        counts[f"series of {series.modality} were not taken"] += 1
    elif "LOCALIZER" in (series.files[0][1].get("ImageType") or []):
        counts["localizers were passed over"] += 1
    elif slices < min_slices:
        counts[f"series of fewer than {min_slices} slices were passed over"] += 1
    else:
        return True
    return False


def _tell_patients_apart(series: Sequence[_Series], counts: Counter[str], notes: list[str], hide: Callable[[str], str]) -> list[str]:
    """The patient of each series: its id, with the folder where one id means several people."""
    people: dict[str, set[tuple[str, ...]]] = {}
    for one in series:
        people.setdefault(one.text("PatientID"), set()).add(tuple(one.text(name) for name in PERSON))
    several = {
        name for name, known in people.items() if any(a and b and a != b for p in known for q in known for a, b in zip(p, q, strict=True))
    }
    told = []
    folders: dict[str, set[str]] = {}
    for one in series:
        name = one.text("PatientID")
        if not name:
            counts["series have no PatientID, so their first folder counts as the patient"] += 1
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


def _rows(series: Sequence[_Series], told: Sequence[str], hide: Callable[[str], str], hash_ids: bool) -> list[dict[str, str]]:
    studies: dict[str, set[tuple[str, str]]] = {}
    for patient, one in zip(told, series, strict=True):
        studies.setdefault(patient, set()).add((one.text("StudyDate"), one.text("StudyInstanceUID")))
    rows = []
    for patient, one in zip(told, series, strict=True):
        study = one.text("StudyDate"), one.text("StudyInstanceUID")
        session, name = str(1 + sorted(studies[patient]).index(study)), hide(patient)
        scan = f"{name}_{session}_{one.modality}_{hashlib.sha256(hide(one.key).encode()).hexdigest()[:8]}"
        frame = one.text("FrameOfReferenceUID")
        row = {
            "scan": scan,
            "patient": name,
            "session": session,
            "session_days": _days(study[0], [date for date, _ in studies[patient]]),
            "modality": one.modality,
            "frame": f"{name}/{hide(frame)}" if frame else "",  # within a patient: a copied UID joins nobody else
            "path": quote(f"{scan}.nii.gz", safe=" +=@,"),
            "study": hide(study[1]),
            "series": hide(one.text("SeriesInstanceUID")),
        }
        if not hash_ids:
            row |= {"study_date": study[0], "description": " ".join(one.text("SeriesDescription").split())}
        rows.append(row)
    return rows


def _days(date: str, dates: Sequence[str]) -> str:
    """Days from the first of a patient's studies, "" where a date is missing or wrong."""
    try:
        times = [datetime.strptime(text, "%Y%m%d") for text in dates]
        return str((datetime.strptime(date, "%Y%m%d") - min(times)).days)
    except ValueError:
        return ""


def _written(path: Path | None, series: _Series, pet: PetUnits) -> list[str]:
    """Write a series, unless it is there from the same slices; its warnings. DataError where it is no volume."""
    if path is None:
        return list(_read(series, pet).warnings)
    states = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file, _ in series.files]
    made_of = {"schema": SCHEMA, "pet": pet, "slices": hashlib.sha256(json.dumps(states).encode()).hexdigest()}
    beside = path.with_name(path.name.removesuffix(".nii.gz") + ".json")
    try:
        known = json.loads(beside.read_text())
        if path.exists() and {name: known.get(name) for name in made_of} == made_of:
            return list(known["warnings"])
    except (OSError, ValueError, KeyError, AttributeError):
        pass
    try:
        volume = _read(series, pet)
    except DataError:
        path.unlink(missing_ok=True)
        beside.unlink(missing_ok=True)
        raise
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(volume.voxels, volume.affine)
    image.header.set_xyzt_units("mm")
    with replacing(path) as out:
        out.write(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
    write_json(beside, {**made_of, "warnings": list(volume.warnings)})
    return list(volume.warnings)


def _read(series: _Series, pet: PetUnits) -> SeriesVolume:
    try:
        return read_series(series.files, pet=pet)
    except DataError as error:
        raise DataError(f"{series.where}: series {series.text('SeriesInstanceUID') or 'without UID'}: {error}") from None


def _open(text: str) -> str:
    return text


def _hider(raw: Path | None) -> Callable[[str], str]:
    """Text as a hash under a key that is drawn once a collection: ids of few digits could be tried out without one."""
    if raw is None:
        return _keyed(secrets.token_hex(32).encode())
    path = raw / ".hash_key"
    raw.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with replacing(path) as out:
            out.write(secrets.token_hex(32).encode())
        path.chmod(0o600)
    return _keyed(path.read_bytes())


def _keyed(key: bytes) -> Callable[[str], str]:
    return lambda text: hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:12] if text else ""


def _without_paths(series: _Series) -> Callable[[str], str]:
    """A message in which no folder, file or UID stands, since those may hold a name: files are numbered instead."""

    def clear(text: str) -> str:
        for number, (path, _) in sorted(enumerate(series.files, start=1), key=lambda file: -len(file[1][0].name)):
            text = text.replace(str(path), f"file {number}").replace(path.name, f"file {number}")
        return text.replace(f"{series.where}: ", "").replace(f"series {series.text('SeriesInstanceUID') or 'without UID'}: ", "")

    return clear


def _lines(counts: Counter[str]) -> list[str]:
    return [f"{count} {text}" for text, count in counts.items()]
