"""Which DICOM files below a folder are of one series, by their headers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medcl3d.data.dicom.header import Header, has_voxels, read_header
from medcl3d.data.notes import Counted
from medcl3d.data.walk import files_under, unread
from medcl3d.errors import DataError

MODALITIES = {"PT": "PET"}  # by what everybody else calls it
PERSON = ("IssuerOfPatientID", "PatientBirthDate", "PatientSex")  # what tells two people of one PatientID apart
WHOSE = ("PatientID", *PERSON)


@dataclass
class FoundSeries:
    """Files of one series.

    key      what no other series has: its UID and whose it is
    folder   the first below the root
    called   folder and number, for messages; "" where these may not name folders
    headers  in the order of the files' paths
    fault    why it cannot be told which of them belong together, "" if it can
    """

    key: str
    folder: str
    called: str
    headers: list[Header] = field(default_factory=list)
    fault: str = ""

    def text(self, name: str) -> str:
        """A field of the first header that has it, "" if none has."""
        return next(filter(None, (header.text(name) for header in self.headers)), "")

    @property
    def modality(self) -> str:
        """CT, MR, PET, ..."""
        return MODALITIES.get(self.headers[0].modality, self.headers[0].modality)


Files = list[tuple[Path, Header]]  # path below the root, header


def find_series(root: Path, *, hidden: bool) -> tuple[list[FoundSeries], Counted, list[str]]:
    """All series with voxels below a folder; what is something else; what was wrong with others.

    hidden  headers are called by number, and say nothing of what stands in their file

    Files of one SeriesInstanceUID are several series only if they contradict each other: what some of them leave out tells nothing.
    """
    seen, notes, closed = Counted(hidden=hidden), list[str](), list[OSError]()
    of_uid: dict[str, Files] = {}
    of_folder: dict[Path, Files] = {}  # files without a UID
    for number, path in enumerate(files_under(root, closed.append), start=1):
        try:
            header = read_header(root / path, f"file {number}" if hidden else None)
        except DataError as error:
            notes.append(f"{error}; it was left out")
            continue
        if header is None:
            seen.add("files are no DICOM images", str(path))
        elif not has_voxels(header):
            seen.add(f"files of {header.modality} have no voxels in space", str(path))
        elif uid := header.text("SeriesInstanceUID"):
            of_uid.setdefault(uid, []).append((path, header))
        else:
            of_folder.setdefault(path.parent, []).append((path, header))
    near: dict[Path, dict[str, set[str]]] = {}
    for uid, files in of_uid.items() if of_folder else ():
        for path, header in files:
            if header.text("SeriesNumber"):
                near.setdefault(path.parent, {}).setdefault(header.text("SeriesNumber"), set()).add(uid)
    for folder, files in of_folder.items():
        _adopted(files, near.get(folder, {}), of_uid, seen)
        for path, _ in files:
            seen.add("files have no SeriesInstanceUID and were grouped by their folder", str(path))
    found: dict[str, FoundSeries] = {}
    for uid, files in of_uid.items():
        parts = _told_apart(files, ("Modality", *WHOSE))
        if len(parts) > 1:
            name = "" if hidden else f"{uid} in {root / files[0][0].parent}"
            seen.add("SeriesInstanceUIDs are of several series, by patient or modality, and were told apart by these", name)
        for part in parts:
            _add(found, uid, part, root, seen, hidden=hidden)
    for folder, files in of_folder.items():
        for part in _told_apart(files, ("Modality", "SeriesNumber", *WHOSE)) if files else ():
            _add(found, f"{folder}/{_first(part, 'Modality')}/{_first(part, 'SeriesNumber')}", part, root, seen, hidden=hidden)
    notes += [] if hidden else unread(root, (), closed)
    return [found[key] for key in sorted(found)], seen, notes


def _adopted(files: Files, near: Mapping[str, set[str]], of_uid: Mapping[str, Files], seen: Counted) -> None:
    """Move files without a UID to the only series of their folder that has their number and contradicts none.

    A careless de-identifier takes the UID out of some files of a series: they are no volume of their own.

    near  SeriesNumber -> UIDs in the folder of the files
    """
    for path, header in list(files):
        uids = near.get(header.text("SeriesNumber"), set())
        if len(uids) == 1 and all(_agree(header, one, ("Modality", *WHOSE)) for _, one in of_uid[min(uids)]):
            of_uid[min(uids)].append((path, header))
            files.remove((path, header))
            seen.add("files have no SeriesInstanceUID and were taken for slices of the series of their number in their folder", str(path))


def _agree(one: Header, other: Header, names: Sequence[str]) -> bool:
    return all(a == b for a, b in ((_text(one, name), _text(other, name)) for name in names) if a and b)


def _text(header: Header, name: str) -> str:
    return header.modality if name == "Modality" and header.text(name) else header.text(name)


def _told_apart(files: Files, names: Sequence[str]) -> list[Files]:
    """Files in groups that contradict each other in some field; what one of them lacks is no contradiction."""
    kinds: dict[tuple[str, ...], Files] = {}
    for path, header in files:
        kinds.setdefault(tuple(_text(header, name) for name in names), []).append((path, header))
    groups: list[list[Files]] = []
    for kind in kinds.values():
        near = [group for group in groups if any(_agree(kind[0][1], other[0][1], names) for other in group)]
        groups = [*(group for group in groups if group not in near), [kind, *(other for group in near for other in group)]]
    order = {path: at for at, (path, _) in enumerate(files)}
    merged = [sorted((file for kind in group for file in kind), key=lambda file: order[file[0]]) for group in groups]
    return sorted(merged, key=lambda group: order[group[0][0]])


def _first(files: Files, name: str) -> str:
    return next(filter(None, (header.text(name) for _, header in files)), "")


def _add(found: dict[str, FoundSeries], base: str, files: Files, root: Path, seen: Counted, *, hidden: bool) -> None:
    """A series of files that belong together. A modality that only some of them name is that of all."""
    path, first = files[0]
    called = "" if hidden else f"{(root / path).parent}: series {_number(first)}"
    key = "/".join([base, *(_first(files, name) for name in WHOSE)])
    modality = _first(files, "Modality")
    if key in found:  # after careless anonymisation a UID may be that of a CT and of an MR
        key = f"{key}/{replace(first, texts={'Modality': modality}).modality}"
    headers = []
    for file, header in files:
        if modality and not header.text("Modality"):
            seen.add("files have no Modality and have that of their series", str(file))
            header = replace(header, texts={**header.texts, "Modality": modality})
        headers.append(header)
    folder = path.parts[0] if len(path.parts) > 1 else root.resolve().name
    found[key] = FoundSeries(key, folder, called, headers, _contradiction(headers))


def _contradiction(headers: Sequence[Header]) -> str:
    """Which fields contradict each other in files that other files, which lack them, hold together."""
    texts = {name: Counter(_text(header, name) for header in headers) for name in ("Modality", *WHOSE, "SeriesNumber")}
    several = [name for name in ("Modality", *WHOSE) if len([text for text in texts[name] if text]) > 1]
    if not several and not headers[0].text("SeriesInstanceUID") and len([text for text in texts["SeriesNumber"] if text]) > 1:
        several = ["SeriesNumber"]
    lacking = [f"{name} has several values and is missing in {texts[name]['']} of {len(headers)} files" for name in several]
    return f"{' and '.join(lacking)}, so whose those are cannot be told; complete the headers, or move the files apart" if lacking else ""


def _number(header: Header) -> str:
    number, uid = header.text("SeriesNumber"), header.text("SeriesInstanceUID")
    return f"{number} ({uid or 'without UID'})" if number else uid or "without UID"


def is_taken(series: FoundSeries, modalities: Sequence[str] | None, min_slices: int, seen: Counted) -> bool:
    """Whether a series is one of those asked for; else it is counted."""
    if modalities is not None and series.modality not in modalities:
        seen.add(f"series of {series.modality} were not taken", series.called)
    elif all("LOCALIZER" in header.words("ImageType") for header in series.headers):
        seen.add("localizers were passed over", series.called)
    elif sum(_num_frames(header, min_slices) for header in series.headers) < min_slices:
        seen.add(f"series of fewer than {min_slices} slices were passed over", series.called)
    else:
        return True
    return False


def _num_frames(header: Header, unknown: int) -> int:
    try:
        return max(1, int(header.number("NumberOfFrames", 1)))
    except DataError:
        return unknown  # refused by name later
