"""The standardised uptake value (SUV) of PET, computed only from present and plausible fields."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta

from medcl3d.core.errors import DataError
from medcl3d.datasets.dicom.header import Header

DOSE = "RadiopharmaceuticalInformationSequence"
# Bq: from a child's dose to 270 mCi; numbers in MBq, kBq or mCi are below.
LOWEST_DOSE, HIGHEST_DOSE = 1e6, 1e10
LOWEST_WEIGHT, HIGHEST_WEIGHT = 1.0, 500.0  # kg
# Of the brightest voxel. Some scanned tissue has an SUV of about 1, and no bladder reaches 1000.
LOWEST_MAXIMUM, HIGHEST_MAXIMUM = 0.2, 1000.0
# Half-life in s, accurate to 1 %, and codes: SNOMED CT and the older SRT.
# Source of the codes: DICOM PS3.16, CID 4020.
NUCLIDES: dict[str, tuple[float, tuple[str, ...]]] = {
    "C-11": (1221.8, ("40565003", "C-105A1")),
    "N-13": (597.9, ("21576001", "C-107A1")),
    "O-15": (122.2, ("129504001", "C-B1038")),
    "F-18": (6586.2, ("77004003", "C-111A1")),
    "Cu-61": (12020.0, ("71425003", "C-127A1")),
    "Cu-62": (580.2, ("422934004", "C-127A5")),
    "Cu-64": (45722.0, ("3932008", "C-127A2")),
    "Ga-68": (4062.6, ("35337001", "C-131A3")),
    "Br-76": (58320.0, ("79523006", "C-113A2")),
    "Rb-82": (75.45, ("79197006", "C-159A2")),
    "Y-86": (53064.0, ("10738001", "C-162A3")),
    "Y-90": (230590.0, ("14691008", "C-162A7")),
    "Zr-89": (282280.0, ("63360001", "C-168A4")),
    "I-124": (360800.0, ("40937006", "C-114A5")),
}
HALF_LIFE_TOLERANCE = 0.03  # headers are rounded, and some use older tables
MOST_HALF_LIVES = 10  # between injection and scan: then about a thousandth is left
CONSTANT = (
    "Units", "SUVType", "CorrectedImage", "DecayCorrection", "PatientWeight", "SeriesDate", "SeriesTime",
)  # fmt: skip


def suv_factor(headers: Sequence[Header]) -> float:
    """Factor from rescaled PET values to SUV by body weight (g/ml). DataError names the first invalid field.

    headers  of all files of the series

    Source: QIBA FDG-PET/CT profile, vendor-neutral calculation of SUV.
    """
    header = headers[0]
    for name in CONSTANT:
        if len({one.text(name) for one in headers}) > 1:
            raise _refused(f"{name} differs among its files")
    if header.text("Units") == "GML" and header.text("SUVType") in ("BW", ""):
        return 1.0
    if header.text("Units") != "BQML":
        raise _refused(f"{header.shown('Units')}, BQML is needed")
    lacking = [name for name in ("ATTN", "DECY") if name not in header.words("CorrectedImage")]
    if lacking:
        raise _refused(f"CorrectedImage lacks {' and '.join(lacking)}")
    doses = {repr(sorted(one.first(DOSE).texts.items())) for one in headers}
    if len(doses) > 1 or len(header.items.get(DOSE, ())) > 1:
        raise _refused("the series has several injections")
    weight, injection = header.number("PatientWeight", 0.0), header.first(DOSE)
    if not LOWEST_WEIGHT <= weight <= HIGHEST_WEIGHT:
        raise _refused(f"PatientWeight is {weight:g} kg")
    dose, half_life = injection.number("RadionuclideTotalDose", 0.0), _half_life(injection)
    if not LOWEST_DOSE <= dose <= HIGHEST_DOSE:
        outside = f"outside {LOWEST_DOSE:g} to {HIGHEST_DOSE:g}, perhaps in MBq or mCi"
        raise _refused(f"RadionuclideTotalDose is {dose:g} Bq, {outside}")
    if header.text("DecayCorrection") == "ADMIN":
        return weight * 1000 / dose
    if header.text("DecayCorrection") != "START":
        raise _refused(f"{header.shown('DecayCorrection')}, START or ADMIN is needed")
    elapsed = _elapsed_s(headers, injection, half_life)
    if not 0 < elapsed < MOST_HALF_LIVES * half_life:
        late = f"{elapsed:.0f} s after the injection"
        raise _refused(f"the scan starts {late}, the half-life is {half_life:g} s")
    return weight * 1000 / (dose * 2 ** (-elapsed / half_life))


def refuse_impossible(maximum: float) -> None:
    """DataError if the SUV of the brightest voxel is implausible."""
    if not LOWEST_MAXIMUM <= maximum <= HIGHEST_MAXIMUM:
        outside = f"outside {LOWEST_MAXIMUM:g} to {HIGHEST_MAXIMUM:g}"
        raise _refused(f"its maximum would be {maximum:.3g}, {outside}")


def _refused(what: str) -> DataError:
    remedy = "correct the headers, or read the stored values with pet=raw"
    return DataError("", f"the SUV cannot be computed: {what}", remedy)


def _half_life(injection: Header) -> float:
    """Half-life in s, validated against the known nuclides and the named one."""
    half_life = injection.number("RadionuclideHalfLife", 0.0)
    given, known = f"RadionuclideHalfLife is {half_life:g} s", NUCLIDES.items()
    near = {name for name, (seconds, _) in known if abs(half_life / seconds - 1) <= HALF_LIFE_TOLERANCE}
    if not near:
        raise _refused(f"{given}, which matches no PET nuclide (F-18: {NUCLIDES['F-18'][0]:g} s)")
    code = injection.first("RadionuclideCodeSequence").text("CodeValue")
    named = {name for name, (_, codes) in known if code in codes}
    if named - near:
        raise _refused(f"{given}, the nuclide is {named.pop()}")
    return half_life


def _elapsed_s(headers: Sequence[Header], injection: Header, half_life: float) -> float:
    """Seconds from the injection to the start of the series, to which the values are decay-corrected."""
    header, given = headers[0], injection.text("RadiopharmaceuticalStartDateTime")
    if not given and MOST_HALF_LIVES * half_life > 24 * 3600:
        reason = "with this half-life the injection may be on another day"
        raise _refused(f"RadiopharmaceuticalStartDateTime is missing, and {reason}")
    try:
        start = read_time(header.text("SeriesDate"), header.text("SeriesTime"))
        acquired = min(read_time(one.text("AcquisitionDate"), one.text("AcquisitionTime")) for one in headers)
        if given:
            injected = read_time(given[:8], re.sub(r"[+-]\d{4}$", "", given[8:]))
        else:
            injected = read_time(header.text("SeriesDate"), injection.text("RadiopharmaceuticalStartTime"))
            injected -= timedelta(days=injected > start)  # injected before midnight
    except ValueError:
        raise _refused("the times of injection, series or acquisition are missing or wrong") from None
    if (start - acquired).total_seconds() > 1:  # one of the two may lack fractions of a second
        reason = "so the time of decay correction is unknown"
        raise _refused(f"SeriesTime is later than the first AcquisitionTime, {reason}")
    return (start - injected).total_seconds()


def read_time(date: str, time: str) -> datetime:
    """A DICOM date and time: YYYYMMDD and HH, HHMM, HHMMSS or HHMMSS.ffffff. ValueError for anything else."""
    parts = re.fullmatch(r"(\d\d)(?:(\d\d)(?:(\d\d)(?:\.(\d{1,6}))?)?)?", time)
    if not parts or not re.fullmatch(r"\d{8}", date):
        raise ValueError(f"{date} {time}")
    hour, minute, second = (int(part or 0) for part in parts.groups()[:3])
    microsecond, day = int((parts[4] or "").ljust(6, "0")), datetime.strptime(date, "%Y%m%d")
    return day.replace(hour=hour, minute=minute, second=second, microsecond=microsecond)
