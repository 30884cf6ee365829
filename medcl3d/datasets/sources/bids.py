"""BIDS: identity from file names, metadata from tables and sidecars, labels from derivatives."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import pandas as pd

from medcl3d.core.errors import DataError
from medcl3d.core.notes import Counted
from medcl3d.datasets.bids import labels as bids_labels
from medcl3d.datasets.bids.names import BidsName, session_of
from medcl3d.datasets.bids.tables import Line, Row, Sidecar, Sidecars, participants, scans, sessions
from medcl3d.datasets.columns import MISSING
from medcl3d.datasets.days import date_of, days_from_first
from medcl3d.datasets.manifest import Manifest
from medcl3d.datasets.scan_ids import default_ids
from medcl3d.datasets.sources import SOURCES
from medcl3d.io.walk import VOLUMES, folders_under, unread

# Series over time or direction, calibrations, field maps; masks and label maps in the folders of images.
LEFT_OUT = frozenset(
    ("asl", "bold", "cbv", "dwi", "m0scan", "sbref", "defacemask", *bids_labels.SUFFIXES, "probseg")
)
FIELD_MAPS = "fmap"  # their folder
# Folders of the standard beside the subjects, without scans to read.
BESIDE = ("code", "derivatives", "phenotype", "stimuli")
STRAY = "NIfTI files do not follow the BIDS names and folders and are skipped"
PARTS = ("phase", "real", "imag")  # of a complex image
SIDECAR = (
    "Manufacturer", "ManufacturersModelName", "MagneticFieldStrength", "RepetitionTime", "EchoTime",
    "FlipAngle",
)  # fmt: skip


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

    modalities  suffixes to read, as T1w or FLAIR (default: all except series over time or direction, field
                maps, phase images and masks)
    derivative  folder of `derivatives/` whose ..._dseg or ..._mask files are the labels (default: the only
                one), or none
    label       pieces of the names of the label maps, if an image has several: [dseg], or [desc-brain, mask]
    label_of    suffixes of the images of label maps whose names do not give it (default: the only image of
                that name)
    sidecar     fields to read from the JSON files of the images and of the folders above; [] reads none

    The columns of participants.tsv become metadata, and so do those of sub-ID_sessions.tsv and ..._scans.tsv.
    Days from the first visit come from a column days_since_first or from the dates of acq_time; the dates
    themselves are dropped. A label map in the space of another image (``space-FLAIR``) belongs to that image.
    BIDS does not define which scans share world millimetres, so each scan is its own frame; a csv manifest
    can define frames.
    Source: Gorgolewski et al. 2016, The Brain Imaging Data Structure.

    Raises DataError if there is no subject or image, if several derivatives or label maps fit, or if a file
    of one subject or session is in a folder of another. Skipped files are counted.
    """
    subjects = sorted(path for path in root.glob("sub-*") if path.is_dir())
    if not subjects:
        remedy = "a BIDS root holds dataset_description.json, participants.tsv and sub-*/"
        raise DataError(root, "no folder sub-*", remedy)
    people, notes = participants(root, {path.name for path in subjects})
    sidecars, skips = Sidecars(sidecar), _Skipped()
    top = [(BidsName.of(path.name), path) for path in sorted(root.glob("*.json"))] if sidecar else []
    images = _Images(root, modalities, sidecars, top, skips)
    for subject in subjects:
        images.add(_Subject.of(subject, skips), people.get(subject.name))
    skips.count_strays(root)
    skipped = [*sidecars.notes(), *skips.notes(root)]
    if not images.rows:
        why = "; ".join(skipped) or "the folders are empty"
        raise DataError(root, f"no image to read; modalities = {list(modalities or ())}", why)
    unused = Counted()
    labels = None if derivative == "none" else bids_labels.find_derivative(root, derivative, label, unused)
    pairs, unpaired = bids_labels.pair(root, labels, images.names, label_of)
    classes, unnamed = bids_labels.class_names(labels, pairs.values())
    table = pd.DataFrame(images.rows)
    table["label"] = [pairs.get(path, "") for path in table["path"]]
    table["scan"] = default_ids(table["path"].tolist(), [name.stem for name in images.names.values()])
    noted = (*notes, *skipped, *unused.notes(), *unpaired, *unnamed)
    return Manifest.of(table, root, classes, outside=allow_outside, cell_places=images.places, notes=noted)


def _is_selected(above: Sequence[str], name: BidsName, modalities: Sequence[str] | None) -> bool:
    if modalities is not None:
        return name.suffix in modalities
    is_part = name.entities.get("part") in PARTS
    return name.suffix not in LEFT_OUT and not is_part and FIELD_MAPS not in above[-1:]


@dataclass
class _Skipped:
    """Skipped images by suffix, misplaced files, invalid dates and unreadable folders of all subjects."""

    left_out: Counted = field(default_factory=Counted)
    odd: Counted = field(default_factory=Counted)
    others: list[Path] = field(default_factory=list)
    unreadable: list[OSError] = field(default_factory=list)

    def count_strays(self, root: Path) -> None:
        """Count files and folders beside the subjects' folders."""
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
        return [*self.left_out.notes(), *self.odd.notes(), *unread(root, self.others, self.unreadable)]


@dataclass
class _Subject:
    """The files of one subject: paths relative to its folder, as ``ses-1/anat/sub-01_ses-1_T1w.nii.gz``."""

    folder: Path
    images: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    sidecars: dict[str, list[Sidecar]] = field(default_factory=dict)

    @staticmethod
    def of(folder: Path, skips: _Skipped) -> _Subject:
        """List the folder once. Images are in it, in a session's folder, or one level below either."""
        found = _Subject(folder)
        for inner, names in folders_under(folder, skips.unreadable.append):
            depth = len(inner.split("/")) - inner.startswith("ses-")
            for name in names:
                file = f"{inner}/{name}" if inner else name
                if name.endswith(VOLUMES) and depth < 2 and name.startswith("sub-"):
                    found.images.append(file)
                elif name.endswith(VOLUMES):
                    skips.odd.add(STRAY, f"{folder.name}/{file}")
                elif name.endswith(".json"):
                    found.sidecars.setdefault(inner, []).append((BidsName.of(name), folder / file))
                elif name.endswith(("_sessions.tsv", "_scans.tsv")):
                    found.tables.append(file)
                elif not name.endswith((".tsv", ".bval", ".bvec")):
                    skips.others.append(Path(folder.name) / file)
        return found

    def sidecars_above(self, above: Sequence[str]) -> list[list[Sidecar]]:
        """Sidecars in the folders above an image, those of the subject's folder first."""
        return [self.sidecars.get("/".join(above[:depth]), []) for depth in range(len(above) + 1)]

    def visits(self, skips: _Skipped) -> tuple[dict[str, Line], dict[str, Line]]:
        """Session -> its columns; image -> its columns.

        Dates of scans are used if no table of sessions has days.
        """
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
                self._date(path, line.row.pop("acq_time", ""), first, skips, line.place)
                if path in there:
                    about[path] = line
                elif not os.path.lexists(self.folder / path):
                    skips.odd.add("files of ..._scans.tsv are missing", f"{self.folder.name}/{path}")
        if not any(line.row.get("session_days") for line in visits.values()):
            for session, days in days_from_first(first).items():
                known = visits.get(session, Line({}, str(self.folder)))
                visits[session] = Line({**known.row, "session_days": days}, known.place)
        return visits, about

    def _date(self, path: str, time: str, first: dict[str, date], skips: _Skipped, place: str) -> None:
        """Record the earliest date of a session."""
        if time in MISSING:
            return
        found = date_of(time)
        if found is None:
            where = f"{time!r} of {self.folder.name}/{path} in {place}"
            skips.odd.add("acq_time of ..._scans.tsv are not dates and are ignored", where)
            return
        *above, name = path.split("/")
        session = session_of((self.folder.name, *above), BidsName.of(name), path)
        first[session] = min(found, first.get(session, found))


@dataclass
class _Images:
    """Selected images of all subjects: their rows, the place of each cell, and path -> name.

    top  sidecars in the root
    """

    root: Path
    modalities: Sequence[str] | None
    sidecars: Sidecars
    top: Sequence[Sidecar]
    skips: _Skipped
    rows: list[Row] = field(default_factory=list)
    places: list[Row] = field(default_factory=list)
    names: dict[str, BidsName] = field(default_factory=dict)

    def add(self, subject: _Subject, person: Line | None) -> None:
        """Add the images of a subject, and count sessions without one. person: of participants.tsv."""
        visits, about = subject.visits(self.skips)
        with_images: set[str] = set()
        for file in subject.images:
            *above, last = file.split("/")
            name, path = BidsName.of(last), f"{subject.folder.name}/{file}"
            if not _is_selected(above, name, self.modalities):
                part = f"part-{name.entities['part']}_" if "part" in name.entities else ""
                self.skips.left_out.add(f"files *_{part}{name.suffix} are skipped", path)
                continue
            session = session_of((subject.folder.name, *above), name, f"{self.root}/{path}")
            self.names[path] = name
            with_images.add(session)
            row = {"patient": subject.folder.name, "session": session, "modality": name.suffix, "path": path}
            lines = [line for line in (person, visits.get(session), about.get(file)) if line is not None]
            for line in lines:
                row |= line.row
            if self.sidecars.keys:
                row |= self.sidecars.of(name, [self.top, *subject.sidecars_above(above)])
            self.rows.append(row)
            self.places.append({column: line.place for line in lines for column in line.row})
        for session, line in visits.items():
            if session not in with_images and "_sessions.tsv:" in line.place:
                self.skips.odd.add("sessions of ..._sessions.tsv have no image", f"{session} in {line.place}")
