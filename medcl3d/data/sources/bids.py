"""BIDS: subjects, sessions and modalities in the names of files, tables and sidecars beside them, labels under derivatives."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import pandas as pd

from medcl3d.data.bids import labels as bids_labels
from medcl3d.data.bids.names import BidsName, session_of
from medcl3d.data.bids.tables import Line, Row, Sidecar, Sidecars, participants, scans, sessions
from medcl3d.data.columns import MISSING
from medcl3d.data.days import date_of, days_from_first
from medcl3d.data.manifest import Manifest
from medcl3d.data.notes import Counted
from medcl3d.data.scan_ids import made_ids
from medcl3d.data.sources import SOURCES
from medcl3d.data.walk import VOLUMES, folders_under, unread
from medcl3d.errors import DataError

# A fourth axis of time or direction, calibrations, field maps; masks and label maps that lie among the images.
LEFT_OUT = frozenset(("asl", "bold", "cbv", "dwi", "m0scan", "sbref", "defacemask", *bids_labels.SUFFIXES, "probseg"))
FIELD_MAPS = "fmap"  # their folder
BESIDE = ("code", "derivatives", "phenotype", "stimuli")  # what the standard has beside the subjects, and holds no scan to take
STRAY = "NIfTI files are not named or placed as BIDS has it and not taken"
PARTS = ("phase", "real", "imag")  # of a complex image
SIDECAR = ("Manufacturer", "ManufacturersModelName", "MagneticFieldStrength", "RepetitionTime", "EchoTime", "FlipAngle")


@SOURCES.register("bids")
def bids(
    root: Path,
    *,
    modalities: tuple[str, ...] | None = None,
    derivative: str | None = None,
    label: tuple[str, ...] = (),
    label_of: tuple[str, ...] = (),
    sidecar: tuple[str, ...] = SIDECAR,
    allow_outside: bool = False,
) -> Manifest:
    """Read a BIDS dataset of 3-D images: ``sub-ID/[ses-ID/]anat/..._SUFFIX.nii.gz``.

    modalities  suffixes to take, as T1w or FLAIR (default: all but series in time or direction, field maps, phases and masks)
    derivative  the folder of `derivatives/` whose ..._dseg or ..._mask files are the labels (default: the only one there is), or none
    label       pieces of the label maps' names, where there are several of an image: [dseg], or [desc-brain, mask]
    label_of    suffixes of the images that label maps belong to whose names do not say it (default: the only image of that name)
    sidecar     what to take from the JSON files of the images, those of the folders above included; [] reads none

    The columns of participants.tsv become metadata; those of sub-ID_sessions.tsv and ..._scans.tsv too, with days from the first
    visit out of a column days_since_first or the dates of acq_time, which themselves are not kept. A label map in the space of
    another image (``space-FLAIR``) is that image's. BIDS does not say which scans share world
    millimetres, so each scan is a frame of its own; a csv manifest can say more.
    Source: Gorgolewski et al. 2016, The Brain Imaging Data Structure.

    Raises DataError where there is no subject, no image, more than one derivative or label map to choose from, or a file of one
    subject or session in a folder of another. What lies there and is not taken is counted.
    """
    subjects = sorted(path for path in root.glob("sub-*") if path.is_dir())
    if not subjects:
        raise DataError(f"{root}: no folder sub-* there; a BIDS root holds dataset_description.json, participants.tsv and sub-*/")
    people, notes = participants(root, {path.name for path in subjects})
    beside, seen = Sidecars(sidecar), _Seen()
    top = [(BidsName.of(path.name), path) for path in sorted(root.glob("*.json"))] if sidecar else []
    rows: list[Row] = []
    places: list[Row] = []
    names: dict[str, BidsName] = {}
    for subject in subjects:
        found = _Subject.of(subject, seen)
        visits, about = found.visits(seen)
        with_images: set[str] = set()
        for file in found.images:
            *above, last = file.split("/")
            name = BidsName.of(last)
            if not _is_taken(above, name, modalities):
                kind = f"part-{name.entities['part']}_{name.suffix}" if "part" in name.entities else name.suffix
                seen.left_out.add(f"files *_{kind} are not taken", f"{subject.name}/{file}")
                continue
            path = f"{subject.name}/{file}"
            session = session_of((subject.name, *above), name, f"{root}/{path}")
            names[path] = name
            with_images.add(session)
            row, place = {"patient": subject.name, "session": session, "modality": name.suffix, "path": path}, Row()
            for line in (people.get(subject.name), visits.get(session), about.get(file)):
                if line is not None:
                    row |= line.row
                    place |= dict.fromkeys(line.row, line.place)
            rows.append(row | (beside.of(name, [top, *found.sidecars_above(above)]) if sidecar else {}))
            places.append(place)
        for session, line in visits.items():
            if session not in with_images and "_sessions.tsv:" in line.place:
                seen.odd.add("sessions of ..._sessions.tsv have no image that is taken", f"{session} in {line.place}")
    seen.beside(root)
    told = [*beside.notes(), *seen.notes(root)]
    if not rows:
        raise DataError(f"{root}: no image is left; modalities = {list(modalities or ())}; {'; '.join(told) or 'the folders are empty'}")
    unasked = Counted()
    labels = None if derivative == "none" else bids_labels.find_derivative(root, derivative, label, unasked)
    pairs, unpaired = bids_labels.pair(root, labels, names, label_of)
    classes, unnamed = bids_labels.class_names(labels, pairs.values())
    table = pd.DataFrame(rows)
    table["label"] = [pairs.get(path, "") for path in table["path"]]
    table["scan"] = made_ids(table["path"].tolist(), [name.stem for name in names.values()])
    noted = (*notes, *told, *unasked.notes(), *unpaired, *unnamed)
    return Manifest.of(table, root, classes, outside=allow_outside, cell_places=places, notes=noted)


def _is_taken(above: Sequence[str], name: BidsName, modalities: Sequence[str] | None) -> bool:
    if modalities is not None:
        return name.suffix in modalities
    is_part = name.entities.get("part") in PARTS
    return name.suffix not in LEFT_OUT and not is_part and FIELD_MAPS not in above[-1:]


@dataclass
class _Seen:
    """What is counted over all subjects: images by suffix, files in no place of BIDS, odd dates, folders that cannot be read."""

    left_out: Counted = field(default_factory=Counted)
    odd: Counted = field(default_factory=Counted)
    others: list[Path] = field(default_factory=list)
    closed: list[OSError] = field(default_factory=list)

    def beside(self, root: Path) -> None:
        """Count what lies beside the folders of the subjects."""
        for name in sorted(os.listdir(root)):
            if name.startswith(".") or (name.startswith("sub-") and not name.endswith(VOLUMES)):
                continue
            if (root / name).is_dir():
                if name not in BESIDE:
                    self.odd.add("folders beside those of the subjects are not read", name)
            elif name.endswith(VOLUMES):
                self.odd.add(STRAY, name)
            else:
                self.others.append(Path(name))

    def notes(self, root: Path) -> list[str]:
        return [*self.left_out.notes(), *self.odd.notes(), *unread(root, self.others, self.closed)]


@dataclass
class _Subject:
    """The files of one subject: paths relative to its folder, as ``ses-1/anat/sub-01_ses-1_T1w.nii.gz``."""

    folder: Path
    images: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    sidecars: dict[str, list[Sidecar]] = field(default_factory=dict)

    @staticmethod
    def of(folder: Path, seen: _Seen) -> _Subject:
        """Look through the folder once: images lie in it, in a session's folder, or one below either."""
        found = _Subject(folder)
        for inner, names in folders_under(folder, seen.closed.append):
            depth = len(inner.split("/")) - inner.startswith("ses-")
            for name in names:
                file = f"{inner}/{name}" if inner else name
                if name.endswith(VOLUMES):
                    is_image = depth < 2 and name.startswith("sub-")
                    if is_image:
                        found.images.append(file)
                    else:
                        seen.odd.add(STRAY, f"{folder.name}/{file}")
                elif name.endswith(".json"):
                    found.sidecars.setdefault(inner, []).append((BidsName.of(name), folder / file))
                elif name.endswith(("_sessions.tsv", "_scans.tsv")):
                    found.tables.append(file)
                elif not name.endswith((".tsv", ".bval", ".bvec")):
                    seen.others.append(Path(folder.name) / file)
        return found

    def sidecars_above(self, above: Sequence[str]) -> list[list[Sidecar]]:
        """Sidecars in the folders of an image, those of the subject's folder first."""
        return [self.sidecars.get("/".join(above[:depth]), []) for depth in range(len(above) + 1)]

    def visits(self, seen: _Seen) -> tuple[dict[str, Line], dict[str, Line]]:
        """Session -> its columns; image -> its columns. Dates of scans count where no table of sessions has days."""
        visits: dict[str, Line] = {}
        about: dict[str, Line] = {}
        first: dict[str, date] = {}
        there = set(self.images)
        for table in self.tables:
            if table.endswith("_sessions.tsv"):
                visits |= sessions(self.folder / table)
                continue
            inner = table.rpartition("/")[0]
            for file, line in scans(self.folder / table).items():
                path = f"{inner}/{file}" if inner else file
                self._date(path, line.row.pop("acq_time", ""), first, seen, line.place)
                if path in there:
                    about[path] = line
                elif not os.path.lexists(self.folder / path):
                    seen.odd.add("files of ..._scans.tsv are not there", f"{self.folder.name}/{path}")
        if not any(line.row.get("session_days") for line in visits.values()):
            for session, days in days_from_first(first).items():
                known = visits.get(session, Line({}, str(self.folder)))
                visits[session] = Line({**known.row, "session_days": days}, known.place)
        return visits, about

    def _date(self, path: str, time: str, first: dict[str, date], seen: _Seen, place: str) -> None:
        """Remember the earliest date of a session."""
        if time in MISSING:
            return
        found = date_of(time)
        if found is None:
            seen.odd.add("acq_time of ..._scans.tsv are no dates and left out", f"{time!r} of {self.folder.name}/{path} in {place}")
            return
        *above, name = path.split("/")
        session = session_of((self.folder.name, *above), BidsName.of(name), path)
        first[session] = min(found, first.get(session, found))
