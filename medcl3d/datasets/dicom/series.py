"""A DICOM series as a volume: decoded slices, rescaled to their units, and written as NIfTI."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np

from medcl3d.core.errors import DataError, UserError
from medcl3d.datasets.dicom.order import affine_of
from medcl3d.datasets.dicom.slices import Slice
from medcl3d.datasets.dicom.suv import refuse_impossible, suv_factor
from medcl3d.datasets.dicom.tilt import AIR, Tilt, refuse_tilted, tilt_of, upright
from medcl3d.io.atomic import open_atomic
from medcl3d.io.nifti import nifti_bytes

PetUnits = Literal["suv", "raw"]
PIXELS = (
    "PixelData", "FloatPixelData", "DoubleFloatPixelData", "Rows", "Columns", "NumberOfFrames",
    "SamplesPerPixel", "PlanarConfiguration", "PhotometricInterpretation", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation",
)  # fmt: skip


@dataclass(frozen=True)
class Series:
    """A volume stored as DICOM slices.

    slices    in order
    called    folder and number, for messages; "" if messages must not name folders
    warnings  warnings on the slices so far
    pet       suv: standardised uptake by body weight; raw: the stored values, with a warning
    tilt      for CT with a tilted gantry: error, or resample (upright)
    """

    slices: tuple[Slice, ...]
    called: str = ""
    warnings: tuple[str, ...] = ()
    pet: PetUnits = "suv"
    tilt: Tilt = "error"

    @property
    def is_redacted(self) -> bool:
        """Whether messages must not show text from the files."""
        return self.slices[0].header.called is not None

    def state(self) -> str:
        """A hash of paths, sizes and times of the files, in order; options are not included. DataError."""
        with refusing(self.called, self.is_redacted):
            files = dict.fromkeys(one.header.path for one in self.slices)
            states = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        return hashlib.sha256(json.dumps(states).encode()).hexdigest()


@contextmanager
def refusing(called: str, redact: bool = False) -> Iterator[None]:
    """Convert any exception inside to a DataError that names the series, so that the other series are read.

    redact  without text from the file
    """
    where = f"{called}: " if called else ""
    try:
        yield
    except DataError as error:
        raise DataError(f"{where}{error}") from None
    except UserError:
        raise
    except MemoryError:
        raise DataError(f"{where}not enough memory for this series") from None
    except Exception as error:  # readers raise any exception on damaged bytes
        what = type(error).__name__ if redact else f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise DataError(problem=f"{where}cannot be read ({what})", remedy="fetch it again") from None


def write_series(series: Series, path: Path) -> tuple[str, ...]:
    """Write a series as NIfTI, in mm; returns its warnings. DataError names the series."""
    with refusing(series.called, series.is_redacted):
        voxels, affine, warnings = _read(series)
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    with open_atomic(path) as out:
        out.write(nifti_bytes(image))
    return tuple(warnings)


def _read(series: Series) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Voxels ``[X, Y, Z]`` (HU of CT, SUV of PET if requested), affine to RAS+ mm, and warnings.

    DataError: a tilt, an unknown codec, a PET without the fields for an SUV.
    """
    slices, warnings = series.slices, list(series.warnings)
    modality = slices[0].header.modality
    refuse_tilted(slices, resampled=series.tilt == "resample")
    is_suv, factor = modality == "PT" and series.pet == "suv", 1.0
    if is_suv:
        factor = suv_factor([one.header for one in slices])
    elif modality == "PT":
        warnings.append("PET in its stored units, because of pet=raw")
    if modality == "CT" and any(one.units == "US" for one in slices):
        warnings.append("RescaleType is US (units are unspecified); HU are assumed, as for any CT")
    # Slice by slice, so that only about one copy of a scan is in memory.
    voxels = np.empty((*slices[0].shape, len(slices)), dtype=np.float32, order="F")
    frames: dict[Path, np.ndarray] = {}
    for number, one in enumerate(slices):
        voxels[..., number] = _values(one, frames).T * factor
    if is_suv:
        refuse_impossible(float(voxels.max()))
    affine = affine_of(slices)
    if angle := tilt_of(slices):
        voxels, affine = upright(voxels, slices)
        tilted = f"the gantry was tilted by {angle:.1f} degrees"
        warnings.append(f"{tilted}: resampled upright, {AIR:g} HU outside")
    if voxels.min() >= -32768 and voxels.max() <= 32767 and np.array_equal(np.round(voxels), voxels):
        voxels = voxels.astype(np.int16)
    return voxels, affine, warnings


def _values(one: Slice, frames: dict[Path, np.ndarray]) -> np.ndarray:
    """``Float64[rows, columns]`` after slope and intercept. SimpleITK decodes files, pydicom frames."""
    if one.frame is not None:
        if one.header.path not in frames:
            frames.clear()
            frames[one.header.path] = _stored_frames(one)
        slope, intercept = one.rescale
        return frames[one.header.path][one.frame] * (1.0 if slope is None else slope) + (intercept or 0.0)
    import SimpleITK as sitk

    try:
        values: np.ndarray = sitk.GetArrayFromImage(sitk.ReadImage(str(one.header.path), sitk.sitkFloat64))
    except RuntimeError as error:
        problem = f"the voxels cannot be decoded{_why(one, error)}: an unknown codec, or a truncated file"
        raise DataError(one.name, problem, "fetch it again") from None
    if values.size != one.shape[0] * one.shape[1]:
        problem = f"{values.size} voxels, but {one.shape[0]}x{one.shape[1]} by the header"
        raise DataError(one.name, problem, "fetch it again")
    return values.reshape(one.shape[1], one.shape[0])


def _stored_frames(one: Slice) -> np.ndarray:
    from pydicom import dcmread

    try:
        stored: np.ndarray = dcmread(one.header.path, force=True, specific_tags=list(PIXELS)).pixel_array
    except Exception as error:
        remedy = "pip install python-gdcm, or convert it to one uncompressed file per slice"
        raise DataError(one.name, f"the frames cannot be decoded{_why(one, error)}", remedy) from None
    return stored if stored.ndim == 3 else stored[None]


def _why(one: Slice, error: Exception) -> str:
    """The last line of a reader's error, without memory addresses; empty if messages are redacted."""
    if one.header.called is not None or not str(error).strip():
        return ""
    reason = str(error).strip().splitlines()[-1].replace(str(one.header.path), one.name)
    return f" ({' '.join(re.sub(r'[(]0x[0-9a-f]+[)]', '', reason).split())})"
