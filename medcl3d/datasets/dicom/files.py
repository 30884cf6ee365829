"""Group the DICOM files below a folder into series by their headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from medcl3d.core.errors import DataError
from medcl3d.core.notes import Counted
from medcl3d.datasets.dicom.header import Header, has_voxels, read_header
from medcl3d.io.walk import files_under, unread

MODALITIES = {"PT": "PET"}  # DICOM code -> usual name
PERSON = ("IssuerOfPatientID", "PatientBirthDate", "PatientSex")  # distinguishes two people of one PatientID
WHOSE = ("PatientID", *PERSON)

NOT_DICOM = "files are not DICOM images"  # the reason in a note


@dataclass
class FoundSeries:
    """Files of one series.

    key      unique to the series: its UID and its patient
    folder   the first below the root
    called   folder and number, for messages; "" if messages must not name folders
    headers  in the order of the files' paths
    fault    why its files cannot be assigned to one series, "" if they can
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


def find_series(root: Path, *, redact: bool) -> tuple[list[FoundSeries], Counted, list[str]]:
    """All series with voxels below a folder; counts of other files; notes on unreadable files.

    redact  files are named by number, and messages have no text from their headers

    Files of one SeriesInstanceUID are several series only if their fields contradict each other; missing
    fields do not count.
    """
    counts, notes, unreadable = Counted(redact=redact), list[str](), list[OSError]()
    of_uid: dict[str, Files] = {}
    of_folder: dict[Path, Files] = {}  # files without a UID
    for number, path in enumerate(files_under(root, unreadable.append), start=1):
        try:
            header = read_header(root / path, f"file {number}" if redact else None)
        except DataError as error:
            notes.append(f"{error}; it was skipped")
            continue
        if header is None:
            counts.add(NOT_DICOM, str(path))
        elif not has_voxels(header):
            counts.add(f"files of {header.modality} have no voxels in space", str(path))
        elif uid := header.text("SeriesInstanceUID"):
            of_uid.setdefault(uid, []).append((path, header))
        else:
            of_folder.setdefault(path.parent, []).append((path, header))
    neighbours: dict[Path, dict[str, set[str]]] = {}
    for uid, files in of_uid.items() if of_folder else ():
        for path, header in files:
            if header.text("SeriesNumber"):
                neighbours.setdefault(path.parent, {}).setdefault(header.text("SeriesNumber"), set()).add(uid)
    for folder, files in of_folder.items():
        _adopt(files, neighbours.get(folder, {}), of_uid, counts)
        for path, _ in files:
            counts.add("files have no SeriesInstanceUID and were grouped by their folder", str(path))
    found: dict[str, FoundSeries] = {}
    for uid, files in of_uid.items():
        parts = _grouped(files, ("Modality", *WHOSE))
        if len(parts) > 1:
            name = "" if redact else f"{uid} in {root / files[0][0].parent}"
            several = "several patients or modalities and were split into series by these"
            counts.add(f"SeriesInstanceUIDs have {several}", name)
        for part in parts:
            _add(found, uid, part, root, counts, redact=redact)
    for folder, files in of_folder.items():
        for part in _grouped(files, ("Modality", "SeriesNumber", *WHOSE)):
            base = f"{folder}/{_first(part, 'Modality')}/{_first(part, 'SeriesNumber')}"
            _add(found, base, part, root, counts, redact=redact)
    notes += [] if redact else unread(root, (), unreadable)
    return [found[key] for key in sorted(found)], counts, notes


def _adopt(
    files: Files, neighbours: Mapping[str, set[str]], of_uid: Mapping[str, Files], counts: Counted
) -> None:
    """Move files without a UID to the only series in their folder with their number, if no field contradicts.

    Some de-identifiers remove the UID from a few files of a series; these files are not a separate volume.

    neighbours  SeriesNumber -> UIDs in the folder of the files
    """
    for path, header in list(files):
        uids = neighbours.get(header.text("SeriesNumber"), set())
        if len(uids) == 1 and all(_agree(header, one, ("Modality", *WHOSE)) for _, one in of_uid[min(uids)]):
            of_uid[min(uids)].append((path, header))
            files.remove((path, header))
            assigned = "assigned to the series of their number and folder"
            counts.add(f"files have no SeriesInstanceUID and were {assigned}", str(path))


def _agree(one: Header, other: Header, names: Sequence[str]) -> bool:
    return all(a == b for a, b in ((_text(one, name), _text(other, name)) for name in names) if a and b)


def _text(header: Header, name: str) -> str:
    return header.modality if name == "Modality" and header.text(name) else header.text(name)


def _grouped(files: Files, names: Sequence[str]) -> list[Files]:
    """Files in groups that contradict each other in some field; a missing field is not a contradiction."""
    kinds: dict[tuple[str, ...], Files] = {}
    for path, header in files:
        kinds.setdefault(tuple(_text(header, name) for name in names), []).append((path, header))
    groups: list[list[Files]] = []
    for kind in kinds.values():
        first = kind[0][1]
        near = [group for group in groups if any(_agree(first, other[0][1], names) for other in group)]
        groups = [*(group for group in groups if group not in near), [kind, *chain(*near)]]
    order = {path: at for at, (path, _) in enumerate(files)}
    merged = [sorted(chain(*group), key=lambda file: order[file[0]]) for group in groups]
    return sorted(merged, key=lambda group: order[group[0][0]])


def _first(files: Files, name: str) -> str:
    return next(filter(None, (header.text(name) for _, header in files)), "")


def _add(
    found: dict[str, FoundSeries], base: str, files: Files, root: Path, counts: Counted, *, redact: bool
) -> None:
    """Add a series of files. A modality that only some of them have is that of all."""
    path, first = files[0]
    called = "" if redact else f"{(root / path).parent}: series {_number(first)}"
    key = "/".join([base, *(_first(files, name) for name in WHOSE)])
    modality = _first(files, "Modality")
    if key in found:  # after faulty anonymisation, a CT and an MR may share a UID
        key = f"{key}/{replace(first, texts={'Modality': modality}).modality}"
    headers = []
    for file, header in files:
        if modality and not header.text("Modality"):
            counts.add("files have no Modality and were given that of their series", str(file))
            header = replace(header, texts={**header.texts, "Modality": modality})
        headers.append(header)
    folder = path.parts[0] if len(path.parts) > 1 else root.resolve().name
    found[key] = FoundSeries(key, folder, called, headers, _contradiction(headers))


def _contradiction(headers: Sequence[Header]) -> str:
    """Fields with several values in a group that only files without these fields connect."""
    names = ("Modality", *WHOSE, "SeriesNumber")
    texts = {name: [_text(header, name) for header in headers] for name in names}
    several = [name for name in names if len(set(texts[name]) - {""}) > 1]
    if len(several) > 1 or headers[0].text("SeriesInstanceUID"):
        several = [name for name in several if name != "SeriesNumber"]
    lacking = [
        f"{name} has several values and is missing in {texts[name].count('')} of {len(headers)} files"
        for name in several
    ]
    remedy = "so their series is unknown; complete the headers, or move the files to separate folders"
    return f"{' and '.join(lacking)}, {remedy}" if lacking else ""


def _number(header: Header) -> str:
    number, uid = header.text("SeriesNumber"), header.text("SeriesInstanceUID")
    return f"{number} ({uid or 'without UID'})" if number else uid or "without UID"


def is_selected(
    series: FoundSeries, modalities: Sequence[str] | None, min_slices: int, counts: Counted
) -> bool:
    """Whether a series is selected; else it is counted."""
    if modalities is not None and series.modality not in modalities:
        counts.add(f"series of {series.modality} were skipped", series.called)
    elif all("LOCALIZER" in header.words("ImageType") for header in series.headers):
        counts.add("localizers were skipped", series.called)
    elif sum(_num_frames(header, min_slices) for header in series.headers) < min_slices:
        counts.add(f"series of fewer than {min_slices} slices were skipped", series.called)
    else:
        return True
    return False


def _num_frames(header: Header, unknown: int) -> int:
    try:
        return max(1, int(header.number("NumberOfFrames", 1)))
    except DataError:
        return unknown  # refused later, with its name
