"""The header of a DICOM file as plain text, for a fixed list of fields without patient names."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from medcl3d.core.errors import DataError, MachineError

# The only fields that are read.
NAMES = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID",
    "Modality", "ImageType", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge",
    "StudyDate", "SeriesDescription", "SeriesNumber", "Manufacturer", "MagneticFieldStrength", "KVP",
    "ConvolutionKernel", "SliceThickness", "SpacingBetweenSlices", "PixelRepresentation", "NumberOfFrames",
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PixelSpacing", "ImagePositionPatient",
    "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept", "RescaleType", "AcquisitionNumber",
    "EchoNumbers", "EchoTime", "TemporalPositionIdentifier", "Units", "SUVType", "DecayCorrection",
    "CorrectedImage", "PatientWeight", "SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime",
)  # fmt: skip
DOSE_NAMES = (
    "RadionuclideTotalDose", "RadionuclideHalfLife", "RadiopharmaceuticalStartTime",
    "RadiopharmaceuticalStartDateTime",
)  # fmt: skip
# What is read: "" -> fields; sequence -> what is read of its items, as the tracer dose or the frames.
Fields = Mapping[str, Any]
OF_A_FRAME: Fields = {
    "PlanePositionSequence": {"": ("ImagePositionPatient",)},
    "PlaneOrientationSequence": {"": ("ImageOrientationPatient",)},
    "PixelMeasuresSequence": {"": ("PixelSpacing",)},
    "PixelValueTransformationSequence": {"": ("RescaleSlope", "RescaleIntercept", "RescaleType")},
    "FrameContentSequence": {"": ("TemporalPositionIndex", "FrameAcquisitionNumber", "StackID")},
    "MREchoSequence": {"": ("EffectiveEchoTime",)},
    "MRImageFrameTypeSequence": {"": ("FrameType",)},
    "CTImageFrameTypeSequence": {"": ("FrameType",)},
    "PETFrameTypeSequence": {"": ("FrameType",)},
}
OF_A_FILE: Fields = {
    "": NAMES,
    "RadiopharmaceuticalInformationSequence": {
        "": DOSE_NAMES,
        "RadionuclideCodeSequence": {"": ("CodeValue",)},
    },
    "SharedFunctionalGroupsSequence": OF_A_FRAME,
    "PerFrameFunctionalGroupsSequence": OF_A_FRAME,
}
DIRECTORY = "1.2.840.10008.1.3.10"  # a DICOMDIR: its files are found by walking the folder


@dataclass(frozen=True)
class Header:
    """The header of a file, or of an item in it. Values are converted on access; errors name the file.

    path    the file
    called  its name in messages, if these must show neither file names nor values; None: they may
    texts   name -> text, values separated by backslashes as in the file; absent fields are not in it
    items   sequence -> its items
    """

    path: Path
    called: str | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    items: Mapping[str, tuple[Header, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The file's name in messages."""
        return self.path.name if self.called is None else self.called

    @property
    def modality(self) -> str:
        """A code, as CT; unknown if the text is not a code."""
        text = self.text("Modality").upper()
        return text if re.fullmatch("[A-Z0-9_ ]{1,16}", text) else "unknown"

    def text(self, name: str) -> str:
        """The text of a field, "" if it is empty or absent."""
        return self.texts.get(name, "")

    def words(self, name: str) -> list[str]:
        """The values of a field."""
        return [word.strip() for word in self.text(name).split("\\")] if self.text(name) else []

    def shown(self, name: str) -> str:
        """A field and its text, for a message."""
        if not self.text(name):
            return f"{name} is missing"
        return f"{name} is {self.text(name)!r}" if self.called is None else f"{name} is wrong"

    def numbers(self, name: str, count: int) -> np.ndarray:
        """``Float64[count]``. DataError unless the field has that many finite numbers."""
        try:
            found = [float(word) for word in self.words(name)]
        except ValueError:
            found = []
        if len(found) != count or not all(map(math.isfinite, found)):
            needed = "a number is" if count == 1 else f"{count} numbers are"
            raise DataError(self.name, f"{self.shown(name)}, {needed} needed", "fetch the file again")
        return np.array(found)

    def number(self, name: str, default: float | None = None) -> float:
        """One finite number; the default if the field is empty or absent. DataError."""
        return default if default is not None and not self.text(name) else float(self.numbers(name, 1)[0])

    def first(self, sequence: str) -> Header:
        """The first item of a sequence, an empty one if it has none."""
        items = self.items.get(sequence)
        return items[0] if items else Header(self.path, self.called)


def read_header(path: Path, called: str | None = None) -> Header | None:
    """The header of a DICOM file, with or without the preamble; None for other files and for a DICOMDIR.

    called  as in `Header`

    DataError if the file is damaged; MachineError without pydicom.
    """
    try:
        from pydicom import dcmread
    except ImportError:
        remedy = "pip install 'medcl3d[dicom]'"
        raise MachineError("", "DICOM needs pydicom, which is not installed", remedy) from None
    try:
        if not path.is_file() or not _begins_as_dicom(path):  # a pipe would block
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they show values; invalid needed values are reported later
            tags = [*NAMES, *(name for name in OF_A_FILE if name)]
            dataset = dcmread(path, force=True, stop_before_pixels=True, specific_tags=tags)
            found = _header(dataset, path, called, OF_A_FILE)
            media = ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID")
            texts = {**found.texts, **{name: str(dataset.file_meta.get(name) or "") for name in media}}
    except Exception as error:  # pydicom raises any exception on damaged bytes
        problem = f"{called} is a damaged DICOM file"
        if called is None:
            problem = f"{path}: is a damaged DICOM file ({type(error).__name__}: {error})"
        raise DataError("", problem, "fetch it again") from None
    if DIRECTORY in (texts.get("SOPClassUID"), texts["MediaStorageSOPClassUID"]):
        return None
    return replace(found, texts=texts)


def has_voxels(header: Header) -> bool:
    """Whether a header describes slices in space; reports, contours and secondary captures do not."""
    has_frames = "PerFrameFunctionalGroupsSequence" in header.items
    return "Rows" in header.texts and ("ImagePositionPatient" in header.texts or has_frames)


def _begins_as_dicom(path: Path) -> bool:
    """Whether a file has the preamble or begins with a likely element of group 2 or 8 (little endian)."""
    with open(path, "rb") as file:
        start = file.read(132)
    if start[128:] == b"DICM":
        return True
    group, element, rest = (int.from_bytes(start[a:b], "little") for a, b in ((0, 2), (2, 4), (4, 8)))
    is_explicit = re.match(rb"[A-Z]{2}", start[4:6]) is not None
    return len(start) == 132 and group in (2, 8) and element <= 0x70 and (is_explicit or rest <= 1024)


def _text(dataset: Any, name: str) -> str:
    try:
        value = dataset[name].value
    except Exception:  # invalid numbers or lengths: kept as text, and refused if needed
        value = dataset.get_item(name).value
    values = value if not isinstance(value, str | bytes) and hasattr(value, "__iter__") else [value]
    text = "\\".join(
        "" if v is None else v.decode("latin-1") if isinstance(v, bytes) else str(v) for v in values
    )
    return re.sub(r"[\x00-\x1f\x7f]+", " ", text).strip()


def _header(dataset: Any, path: Path, called: str | None, fields: Fields) -> Header:
    """The fields of a data set, or of an item of a sequence, that it has."""
    texts = {name: _text(dataset, name) for name in fields.get("", ()) if name in dataset}
    items = {
        name: tuple(_header(item, path, called, inner) for item in dataset[name].value or ())
        for name, inner in fields.items()
        if name and name in dataset
    }
    return Header(path, called, texts, items)
