"""What should be the same in all files of a volume and is not: refused if values depend on it, else reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from medcl3d.data.dicom.slices import MARKS, Slice
from medcl3d.errors import DataError

# What a reader takes a missing field for.
DEFAULTS = {"RescaleSlope": 1.0, "RescaleIntercept": 0.0, "PixelRepresentation": 0.0}
TEXTS = (
    "Modality", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge", "StudyInstanceUID", "StudyDate",
    "SeriesInstanceUID", "FrameOfReferenceUID", "SeriesDescription", "SeriesDate", "SeriesTime", "Manufacturer", "ConvolutionKernel",
    "RescaleType", "Units",
)  # fmt: skip
NUMBERS = (
    "SeriesNumber",
    "PixelRepresentation",
    "PatientWeight",
    "MagneticFieldStrength",
    "KVP",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
)
SHOWN = 3  # values of a field, files
LONGEST = 40  # characters of a value


def refuse_values_in_part(slices: Sequence[Slice]) -> None:
    """DataError if some files say how stored values are meant and others do not, unless all say what a missing field means."""
    for name, default in DEFAULTS.items():
        given = [_value(one, name) for one in slices]
        missing = [one.name for one, value in zip(slices, given, strict=True) if value is None]
        if missing and any(value not in (None, default) for value in given):
            some = f"{', '.join(missing[:SHOWN])}{', ...' if len(missing) > SHOWN else ''}"
            raise DataError(
                f"{name} is missing in {len(missing)} of {len(slices)} slices ({some}) and given in the others, so their values cannot "
                "be compared; fetch the originals"
            )


def _value(one: Slice, name: str) -> float | None:
    if name == "RescaleSlope":
        return one.rescale[0]
    if name == "RescaleIntercept":
        return one.rescale[1]
    return one.header.number(name) if one.header.text(name) else None


def differences(slices: Sequence[Slice]) -> str:
    """Fields that differ among the files of one volume, each with how many files have which value; "" if none does.

    What a message may not show (`Header.called`) is only counted.
    """
    files = list({one.header.path: one for one in slices}.values())
    texts = {name: [one.header.text(name) for one in files] for name in TEXTS}
    texts |= {name: [_as_number(one.header.text(name)) for one in files] for name in NUMBERS}
    if files[0].header.modality != "PT":  # of a PET, each slice has a scale of its own
        for at, name in enumerate(("RescaleSlope", "RescaleIntercept")):
            texts[name] = ["" if one.rescale[at] is None else f"{one.rescale[at]:.10g}" for one in files]
    for at, name in enumerate(MARKS):
        marks = [one.marks[at] for one in files]
        texts |= {name: marks} if len(set(marks)) < len(marks) else {}  # else it counts the files, as numbers of acquisitions may
    hidden = files[0].header.called is not None
    told = [f"{name} ({_counted(values, hidden=hidden)})" for name, values in texts.items() if len(set(values)) > 1]
    return f"its {len(files)} files differ in {', '.join(told)}" if told else ""


def _as_number(text: str) -> str:
    """0.50 and 0.5 are one."""
    try:
        return "\\".join(f"{float(word):.10g}" for word in text.split("\\"))
    except ValueError:
        return text


def _counted(values: Sequence[str], *, hidden: bool) -> str:
    counts: Mapping[str, int] = Counter(values)
    given = sorted((value for value in counts if value), key=lambda value: -counts[value])
    if hidden:
        told = [f"{len(given)} value{'s' if len(given) > 1 else ''}"]
    else:
        told = [f"{value[:LONGEST]} in {counts[value]}" for value in given[:SHOWN]]
        told += [f"{len(given) - SHOWN} other values"] if len(given) > SHOWN else []
    return ", ".join([*told, *([f"missing in {counts['']}"] if counts.get("") else [])])
