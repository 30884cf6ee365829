"""A DICOM series as a volume: slices in the order of their places, and refused where they are no regular grid."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medcl3d.errors import DataError, MachineError

PetUnits = Literal["suv", "raw"]

# All that is ever read of a header: a patient's name is not among it.
TAGS = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality", "ImageType",
    "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "StudyDate", "SeriesDescription", "SeriesNumber",
    "InstanceNumber", "NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation",
    "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept",
    "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence",
    "Units", "SUVType", "DecayCorrection", "CorrectedImage", "PatientWeight", "RadiopharmaceuticalInformationSequence",
    "SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime",
)  # fmt: skip
DIRECTORY = "1.2.840.10008.1.3.10"  # a DICOMDIR: what it points to is found by walking the folder, wherever it points
# Positions are written with few digits; a gap may differ from the others by this share of it.
GAP_TOLERANCE, LATERAL_TOLERANCE = 0.02, 0.5
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Slice:
    """One image of a series: a file, or a frame of one.

    position     ``Float64[3]`` of its first voxel's centre, mm, LPS
    orientation  ``Float64[2, 3]`` directions along a row and down a column
    spacing_mm   between columns, between rows
    shape        columns, rows
    """

    path: Path
    frame: int | None
    position: np.ndarray
    orientation: np.ndarray
    spacing_mm: tuple[float, float]
    shape: tuple[int, int]
    rescale: tuple[float, float] | None
    uid: str

    @property
    def name(self) -> str:
        """What a message calls it."""
        return self.path.name if self.frame is None else f"frame {self.frame + 1} of {self.path.name}"


@dataclass(frozen=True)
class SeriesVolume:
    """``[X, Y, Z]`` voxels (HU of CT, SUV of PET where asked for), affine to RAS+ mm, and what one should know of them."""

    voxels: np.ndarray
    affine: np.ndarray
    warnings: tuple[str, ...]


def read_header(path: Path) -> Any | None:
    """A DICOM header without voxels and without names, or None where the file is no DICOM. MachineError without pydicom."""
    try:
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError
    except ImportError:
        raise MachineError("pydicom is not installed, and DICOM needs it; pip install 'medcl3d[dicom]'") from None
    try:
        if not path.is_file():  # a pipe would block
            return None
        header = dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS))
    except InvalidDicomError:
        return None
    except Exception as error:  # pydicom raises what the bytes make it raise
        raise DataError(f"{path}: is a damaged DICOM file ({type(error).__name__}: {error}); fetch it again") from None
    return None if header.get("SOPClassUID") == DIRECTORY or header.file_meta.get("MediaStorageSOPClassUID") == DIRECTORY else header


def has_voxels(header: Any) -> bool:
    """Whether a header is that of slices in space: reports, contours and secondary captures are not."""
    return "Rows" in header and ("ImagePositionPatient" in header or "PerFrameFunctionalGroupsSequence" in header)


def slices_of(path: Path, header: Any) -> list[Slice]:
    """The slices of a file. DataError where geometry is missing, or the file holds colours."""
    if int(header.get("SamplesPerPixel", 1)) != 1 or str(header.get("PhotometricInterpretation", "MONOCHROME2")) != "MONOCHROME2":
        kind = header.get("PhotometricInterpretation")
        raise DataError(f"{path}: holds {kind}, not grey values that grow with intensity; convert it to MONOCHROME2")
    shape = int(header.Columns), int(header.Rows)
    uid = str(header.get("SOPInstanceUID", "")) or str(header.file_meta.get("MediaStorageSOPInstanceUID", "")) or path.name
    if "PerFrameFunctionalGroupsSequence" not in header:
        if int(header.get("NumberOfFrames") or 1) > 1:
            raise DataError(f"{path}: has several frames and no place for each; convert it to one file a slice")
        return [_slice(path, None, header, header, header, header, shape, uid)]
    shared = header.get("SharedFunctionalGroupsSequence")
    found = []
    for number, group in enumerate(header.PerFrameFunctionalGroupsSequence):

        def part(name: str, group: Any = group) -> Any:
            held = group.get(name) or (shared[0].get(name) if shared else None)
            return held[0] if held else {}

        places = part("PlanePositionSequence"), part("PlaneOrientationSequence"), part("PixelMeasuresSequence")
        found.append(_slice(path, number, *places, part("PixelValueTransformationSequence"), shape, f"{uid}/{number}"))
    return found


def _slice(path: Path, frame: int | None, place: Any, plane: Any, pixels: Any, values: Any, shape: tuple[int, int], uid: str) -> Slice:
    try:
        position = np.array([float(v) for v in place["ImagePositionPatient"].value])
        orientation = np.array([float(v) for v in plane["ImageOrientationPatient"].value]).reshape(2, 3)
        rows, columns = (float(v) for v in pixels["PixelSpacing"].value)
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path}: ImagePositionPatient, ImageOrientationPatient or PixelSpacing is missing or wrong") from None
    lengths = np.linalg.norm(orientation, axis=1)
    if position.shape != (3,) or not np.isfinite(position).all() or not (rows > 0 and columns > 0):
        raise DataError(f"{path}: ImagePositionPatient {position.tolist()}, PixelSpacing {[rows, columns]} are impossible")
    if not np.allclose(lengths, 1, atol=1e-3) or abs(orientation[0] @ orientation[1]) > 1e-3:
        raise DataError(f"{path}: ImageOrientationPatient {orientation.ravel().tolist()} is no pair of orthogonal directions")
    slope = values.get("RescaleSlope")
    rescale = None if slope is None else (float(slope), float(values.get("RescaleIntercept") or 0.0))
    return Slice(path, frame, position, orientation, (columns, rows), shape, rescale, uid)


def in_order(slices: Sequence[Slice]) -> tuple[list[Slice], tuple[str, ...]]:
    """The slices from the first to the last along their normal, the same one twice left out and said.

    DataError, naming files: sizes or directions that differ, two slices at one place, a gap, uneven gaps, a tilted gantry.
    """
    first = slices[0]
    normal = np.cross(*first.orientation)
    for other in slices:
        if other.shape != first.shape or not np.allclose(other.spacing_mm, first.spacing_mm, rtol=1e-3):
            raise DataError(
                f"{first.name} has {_grid(first)} and {other.name} {_grid(other)}: they are no one volume; move them to series of their own"
            )
        if not np.allclose(other.orientation, first.orientation, atol=1e-3):
            raise DataError(
                f"the orientation varies: {first.name} and {other.name} lie in different planes; move them to series of their own"
            )
    ordered = sorted(slices, key=lambda s: (float(s.position @ normal), s.uid, s.name))
    kept, twice = [ordered[0]], []
    for one in ordered[1:]:
        if one.uid == kept[-1].uid:
            twice.append(one.name)
        else:
            kept.append(one)
    warnings = (f"the same slice twice, once left out: {', '.join(twice[:5])}",) if twice else ()
    if len(kept) < 2:
        raise DataError(f"a single slice, {kept[0].name}, is no volume")
    _regular(kept, normal)
    return kept, warnings


def _grid(one: Slice) -> str:
    return f"{one.shape[0]}x{one.shape[1]} voxels of {one.spacing_mm[0]:g}x{one.spacing_mm[1]:g} mm"


def _regular(slices: Sequence[Slice], normal: np.ndarray) -> None:
    depth = np.array([one.position @ normal for one in slices])
    gaps = np.diff(depth)
    usual = float(np.median(gaps))
    for at, gap in enumerate(gaps):
        pair = f"{slices[at].name} and {slices[at + 1].name}"
        if gap < 1e-3:
            raise DataError(f"{pair} lie at one place: a time series, several echoes, or a copy; move them to series of their own")
        if gap > 1.5 * usual:
            missing = max(1, round(gap / usual) - 1)
            raise DataError(f"{missing} slices are missing between {pair}: {gap:g} mm, elsewhere {usual:g} mm; fetch the series again")
    uneven = int(np.abs(gaps - usual).argmax())
    if abs(gaps[uneven] - usual) > max(GAP_TOLERANCE * usual, 0.01):
        pair = f"{slices[uneven].name} and {slices[uneven + 1].name}"
        raise DataError(f"the slices are unevenly spaced: {gaps[uneven]:g} mm between {pair}, elsewhere {usual:g} mm; resample the series")
    offset = np.array([one.position - slices[0].position for one in slices])
    lateral = np.linalg.norm(offset - np.outer(offset @ normal, normal), axis=1)
    if lateral.max() > LATERAL_TOLERANCE * min(slices[0].spacing_mm):
        angle = math.degrees(math.atan2(lateral.max(), depth[lateral.argmax()] - depth[0]))
        raise DataError(
            f"the gantry is tilted: slices move sideways by up to {lateral.max():.1f} mm ({angle:.1f} degrees); resample the series upright"
        )


def affine_of(slices: Sequence[Slice]) -> np.ndarray:
    """``Float64[4, 4]`` from (column, row, slice) to RAS+ mm, of slices in order."""
    first, last = slices[0], slices[-1]
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[0] * first.spacing_mm[0]
    affine[:3, 1] = first.orientation[1] * first.spacing_mm[1]
    affine[:3, 2] = (last.position - first.position) / (len(slices) - 1)
    affine[:3, 3] = first.position
    return LPS_TO_RAS @ affine


def read_series(files: Iterable[tuple[Path, Any]], *, pet: PetUnits) -> SeriesVolume:
    """The volume of one series. DataError where it is none, a codec is unknown, or the SUV of a PET cannot be told.

    files  path and header of each
    pet    suv: standardised uptake by body weight; raw: the stored values, said as a warning
    """
    headers = dict(files)
    slices, warnings = in_order([one for path, header in headers.items() for one in slices_of(path, header)])
    header = headers[slices[0].path]
    modality = str(header.get("Modality", ""))
    factor = 1.0
    if modality == "CT" and any(one.rescale is None for one in slices):
        raise DataError(f"{slices[0].name}: a CT without RescaleSlope and RescaleIntercept, so its values are no HU; fetch the originals")
    if modality == "PT" and pet == "suv":
        factor = suv_factor(header)
    elif modality == "PT":
        warnings += ("a PET in its stored units, as pet=raw says",)
    frames: dict[Path, np.ndarray] = {}
    voxels = np.stack([_values(one, frames).T for one in slices], axis=-1) * factor
    whole = np.round(voxels)
    if np.array_equal(whole, voxels) and voxels.min() >= -32768 and voxels.max() <= 32767:
        return SeriesVolume(voxels.astype(np.int16), affine_of(slices), warnings)
    return SeriesVolume(voxels.astype(np.float32), affine_of(slices), warnings)


def _values(one: Slice, frames: dict[Path, np.ndarray]) -> np.ndarray:
    """``Float64[rows, columns]`` after slope and intercept. SimpleITK knows the codecs, pydicom the frames."""
    if one.frame is not None:
        if one.path not in frames:
            frames.clear()
            frames[one.path] = _stored_frames(one.path)
        slope, intercept = one.rescale or (1.0, 0.0)
        return frames[one.path][one.frame] * slope + intercept
    import SimpleITK as sitk

    try:
        values: np.ndarray = sitk.GetArrayFromImage(sitk.ReadImage(str(one.path), sitk.sitkFloat64))
    except RuntimeError as error:
        said = str(error).strip().splitlines()[-1].strip()
        raise DataError(f"{one.path}: the voxels cannot be decoded ({said}): an unknown codec, or cut short; fetch it again") from None
    if values.size != one.shape[0] * one.shape[1]:
        raise DataError(f"{one.path}: {values.size} voxels, the header says {one.shape[0]}x{one.shape[1]}; fetch it again")
    return values.reshape(one.shape[1], one.shape[0])


def _stored_frames(path: Path) -> np.ndarray:
    from pydicom import dcmread

    try:
        stored: np.ndarray = dcmread(path).pixel_array
    except Exception as error:
        said = " ".join(str(error).split())
        raise DataError(f"{path}: the frames cannot be decoded ({said}); convert it to one uncompressed file a slice") from None
    return stored if stored.ndim == 3 else stored[None]


def suv_factor(header: Any) -> float:
    """What stored PET values, rescaled, are multiplied with to be SUV by body weight (g/ml).

    Source: QIBA FDG-PET/CT profile, vendor-neutral calculation of SUV. DataError names the first thing that is missing.
    """

    def refuse(what: str) -> DataError:
        return DataError(f"no SUV can be told: {what}; correct the headers, or take the stored values with pet=raw")

    units = str(header.get("Units", ""))
    if units == "GML" and str(header.get("SUVType", "BW")) == "BW":
        return 1.0
    if units != "BQML":
        raise refuse(f"Units are {units or 'missing'}, BQML is needed")
    corrected = header.get("CorrectedImage") or []
    lacking = [name for name in ("ATTN", "DECY") if name not in corrected]
    if lacking:
        raise refuse(f"CorrectedImage lacks {' and '.join(lacking)}")
    weight = float(header.get("PatientWeight") or 0)
    if not 1 <= weight <= 500:
        raise refuse(f"PatientWeight is {weight:g} kg")
    drug = (header.get("RadiopharmaceuticalInformationSequence") or [None])[0]
    dose, half_life = (float((drug.get(name) if drug else None) or 0) for name in ("RadionuclideTotalDose", "RadionuclideHalfLife"))
    if not (dose > 0 and half_life > 0):
        raise refuse(f"RadionuclideTotalDose is {dose:g} Bq, RadionuclideHalfLife {half_life:g} s")
    if header.get("DecayCorrection") == "ADMIN":
        return weight * 1000 / dose
    if header.get("DecayCorrection") != "START":
        raise refuse(f"DecayCorrection is {header.get('DecayCorrection')!r}, START or ADMIN is needed")
    try:
        start = _time(header.get("SeriesDate"), header.get("SeriesTime"))
        acquired = _time(header.get("AcquisitionDate"), header.get("AcquisitionTime"))
        if drug.get("RadiopharmaceuticalStartDateTime"):
            text = str(drug.RadiopharmaceuticalStartDateTime)
            injected = _time(text[:8], text[8:14])
        else:
            injected = _time(header.get("SeriesDate"), drug.get("RadiopharmaceuticalStartTime"))
            injected -= timedelta(days=injected > start)  # injected before midnight
    except ValueError:
        raise refuse("the times of injection and series are missing or wrong") from None
    waited = (min(start, acquired) - injected).total_seconds()
    if start > acquired or not 0 < waited < 10 * half_life:
        raise refuse(f"the scan starts {waited:.0f} s after the injection (SeriesTime {start}, AcquisitionTime {acquired})")
    return weight * 1000 / (dose * 2 ** (-waited / half_life))


def _time(date: Any, time: Any) -> datetime:
    return datetime.strptime(f"{date}{str(time or '').partition('.')[0]}", "%Y%m%d%H%M%S")
