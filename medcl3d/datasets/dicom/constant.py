"""Fields that differ within a volume: refused if voxel values depend on them, else reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from medcl3d.core.errors import DataError
from medcl3d.datasets.dicom.slices import MARKS, RESCALE, Slice

# The standard's defaults of missing fields.
DEFAULTS = {"RescaleSlope": 1.0, "RescaleIntercept": 0.0, "PixelRepresentation": 0.0}
TEXTS = (
    "Modality", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge",
    "StudyInstanceUID", "StudyDate", "SeriesInstanceUID", "FrameOfReferenceUID", "SeriesDescription",
    "SeriesDate", "SeriesTime", "Manufacturer", "ConvolutionKernel", "RescaleType", "Units",
)  # fmt: skip
NUMBERS = (
    "SeriesNumber", "PixelRepresentation", "PatientWeight", "MagneticFieldStrength", "KVP", "PixelSpacing",
    "SliceThickness", "SpacingBetweenSlices",
)  # fmt: skip
SHOWN = 3  # values of a field, files
LONGEST = 40  # characters of a value


def refuse_partial_rescaling(slices: Sequence[Slice]) -> None:
    """DataError if only some files have a field that scales values, unless it has the default."""
    for name, default in DEFAULTS.items():
        given = [_value(one, name) for one in slices]
        missing = [one.name for one, value in zip(slices, given, strict=True) if value is None]
        if missing and any(value not in (None, default) for value in given):
            some = f"{', '.join(missing[:SHOWN])}{', ...' if len(missing) > SHOWN else ''}"
            part = f"{name} is missing in {len(missing)} of {len(slices)} slices ({some})"
            problem = f"{part} and given in the others, so their values cannot be compared"
            raise DataError("", problem, "fetch the originals")


def _value(one: Slice, name: str) -> float | None:
    if name in RESCALE:
        return one.rescale[RESCALE.index(name)]
    return one.header.number(name) if one.header.text(name) else None


def differences(slices: Sequence[Slice]) -> str:
    """Fields that differ among the files of one volume, with the number of files per value; "" if none does.

    Redacted texts (`Header.called`) are only counted.
    """
    files = list({one.header.path: one for one in slices}.values())
    texts = {name: [one.header.text(name) for one in files] for name in TEXTS}
    texts |= {name: [_as_number(one.header.text(name)) for one in files] for name in NUMBERS}
    if files[0].header.modality != "PT":  # PET slices each have their own scale
        for at, name in enumerate(RESCALE):
            texts[name] = ["" if one.rescale[at] is None else f"{one.rescale[at]:.10g}" for one in files]
    for at, name in enumerate(MARKS):
        marks = [one.marks[at] for one in files]
        # Else it numbers the files, as AcquisitionNumber may.
        texts |= {name: marks} if len(set(marks)) < len(marks) else {}
    redact = files[0].header.called is not None
    differing = {name: values for name, values in texts.items() if len(set(values)) > 1}
    lines = [f"{name} ({_counted(values, redact=redact)})" for name, values in differing.items()]
    return f"its {len(files)} files differ in {', '.join(lines)}" if lines else ""


def _as_number(text: str) -> str:
    """Text in a normal form, so that 0.50 equals 0.5."""
    try:
        return "\\".join(f"{float(word):.10g}" for word in text.split("\\"))
    except ValueError:
        return text


def _counted(values: Sequence[str], *, redact: bool) -> str:
    counts = Counter(values)
    given = [value for value, _ in counts.most_common() if value]
    if redact:
        shown = [f"{len(given)} value{'s' if len(given) > 1 else ''}"]
    else:
        shown = [f"{value[:LONGEST]} in {counts[value]}" for value in given[:SHOWN]]
        shown += [f"{len(given) - SHOWN} other values"] if len(given) > SHOWN else []
    return ", ".join([*shown, *([f"missing in {counts['']}"] if counts.get("") else [])])
