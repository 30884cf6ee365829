"""Which DICOM files below a folder are of one series, by their headers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medcl3d.data.dicom.header import Header, has_voxels, read_header
from medcl3d.data.walk import files_under
from medcl3d.errors import DataError

MODALITIES = {"PT": "PET"}  # by what everybody else calls it
PERSON = ("IssuerOfPatientID", "PatientBirthDate", "PatientSex")  # what tells two people of one PatientID apart


@dataclass
class FoundSeries:
    """Files of one series.

    key      what no other series has: its UID and whose it is
    folder   the first below the root
    called   folder and number, for messages; "" where these may not name folders
    headers  in the order of the files' paths
    """

    key: str
    folder: str
    called: str
    headers: list[Header] = field(default_factory=list)

    def text(self, name: str) -> str:
        """A field of the first header, "" where it is empty."""
        return self.headers[0].text(name)

    @property
    def modality(self) -> str:
        """CT, MR, PET, ..."""
        return MODALITIES.get(self.headers[0].modality, self.headers[0].modality)


def find_series(root: Path, *, hidden: bool) -> tuple[list[FoundSeries], Counter[str], list[str]]:
    """All series with voxels below a folder; how many files are something else; what was wrong with others.

    hidden  headers are called by number, and say nothing of what stands in their file
    """
    counts, notes = Counter[str](), list[str]()
    found: dict[str, FoundSeries] = {}
    for number, path in enumerate(files_under(root), start=1):
        try:
            header = read_header(root / path, f"file {number}" if hidden else None)
        except DataError as error:
            notes.append(f"{error}; it was left out")
            continue
        if header is None:
            counts["files are no DICOM images"] += 1
        elif not has_voxels(header):
            counts[f"files of {header.modality} have no voxels in space"] += 1
        else:
            uid = header.text("SeriesInstanceUID")
            if not uid:
                counts["files have no SeriesInstanceUID and were grouped by their folder"] += 1
            called = "" if hidden else f"{(root / path).parent}: series {_number(header)}"
            # After careless anonymisation a UID may be that of several people.
            key = uid or f"{path.parent}/{header.text('Modality')}/{header.text('SeriesNumber')}"
            key = "/".join([key, *(header.text(name) for name in ("PatientID", *PERSON))])
            if key in found and found[key].headers[0].modality != header.modality:
                key = f"{key}/{header.modality}"
            folder = path.parts[0] if len(path.parts) > 1 else root.resolve().name
            found.setdefault(key, FoundSeries(key, folder, called)).headers.append(header)
    return [found[key] for key in sorted(found)], counts, notes


def _number(header: Header) -> str:
    number, uid = header.text("SeriesNumber"), header.text("SeriesInstanceUID")
    return f"{number} ({uid or 'without UID'})" if number else uid or "without UID"


def is_taken(series: FoundSeries, modalities: Sequence[str] | None, min_slices: int, counts: Counter[str]) -> bool:
    """Whether a series is one of those asked for; else it is counted."""
    if modalities is not None and series.modality not in modalities:
        counts[f"series of {series.modality} were not taken"] += 1
    elif all("LOCALIZER" in header.words("ImageType") for header in series.headers):
        counts["localizers were passed over"] += 1
    elif sum(_num_frames(header, min_slices) for header in series.headers) < min_slices:
        counts[f"series of fewer than {min_slices} slices were passed over"] += 1
    else:
        return True
    return False


def _num_frames(header: Header, unknown: int) -> int:
    try:
        return max(1, int(header.number("NumberOfFrames", 1)))
    except DataError:
        return unknown  # refused by name later
