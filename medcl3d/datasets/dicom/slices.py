"""The slices of a DICOM file, each with its geometry and the meaning of its stored values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from medcl3d.core.errors import DataError
from medcl3d.datasets.dicom.header import Header

# Fields that distinguish volumes of one series, in order of use: kind of values, time, acquisition.
MARKS = ("ImageType", "EchoNumbers", "EchoTime", "TemporalPositionIdentifier", "StackID", "AcquisitionNumber")
# The same fields of a frame: sequence and field.
FRAME_MARKS = {
    "EchoTime": (("MREchoSequence", "EffectiveEchoTime"),),
    "TemporalPositionIdentifier": (("FrameContentSequence", "TemporalPositionIndex"),),
    "StackID": (("FrameContentSequence", "StackID"),),
    "AcquisitionNumber": (("FrameContentSequence", "FrameAcquisitionNumber"),),
    "ImageType": tuple((f"{kind}FrameTypeSequence", "FrameType") for kind in ("MRImage", "CTImage", "PET")),
}
RESCALE = ("RescaleSlope", "RescaleIntercept")
HU = ("HU", "US", "")  # US: unspecified
FETCH = "fetch the file again"


@dataclass(frozen=True)
class Slice:
    """One image of a series: a file, or a frame of a file.

    position     ``Float64[3]`` centre of its first voxel, mm, LPS
    orientation  ``Float64[2, 3]`` directions along a row and down a column
    spacing_mm   between columns, between rows
    shape        columns, rows
    rescale      slope and intercept of the stored values, each None if the file has none: then 1 and 0 are
                 used
    units        units after rescaling (RescaleType)
    marks        the texts of `MARKS`
    """

    header: Header
    frame: int | None
    position: np.ndarray
    orientation: np.ndarray
    spacing_mm: tuple[float, float]
    shape: tuple[int, int]
    rescale: tuple[float | None, float | None]
    units: str
    marks: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its name in messages."""
        return self.header.name if self.frame is None else f"frame {self.frame + 1} of {self.header.name}"

    @property
    def uid(self) -> str:
        """UID of the instance, and number of the frame; the path if the file has no UID."""
        texts = (self.header.text(f"{kind}InstanceUID") for kind in ("SOP", "MediaStorageSOP"))
        uid = next(filter(None, texts), str(self.header.path))
        return uid if self.frame is None else f"{uid}/{self.frame}"


def slices_of(header: Header) -> list[Slice]:
    """The slices of a file. DataError for missing geometry, colours, or invalid units."""
    kind = header.text("PhotometricInterpretation") or "MONOCHROME2"
    if header.number("SamplesPerPixel", 1) != 1 or kind != "MONOCHROME2":
        problem = f"{header.shown('PhotometricInterpretation')}, not grey values that grow with intensity"
        raise DataError(header.name, problem, "convert it to MONOCHROME2")
    shape = int(header.number("Columns")), int(header.number("Rows"))
    if min(shape) < 1:
        raise DataError(header.name, f"{shape[0]} columns and {shape[1]} rows are not an image", FETCH)
    num_frames = int(header.number("NumberOfFrames", 1))
    frames = header.items.get("PerFrameFunctionalGroupsSequence")
    if frames is None:
        if num_frames > 1:
            remedy = "convert it to one file per slice"
            raise DataError(header.name, "has several frames without positions", remedy)
        return [_slice(header, None, shape, lambda _: header)]
    if len(frames) != num_frames:
        problem = f"NumberOfFrames is {num_frames}, but {len(frames)} have a position"
        raise DataError(header.name, problem, FETCH)
    shared = header.first("SharedFunctionalGroupsSequence")

    def of_frame(frame: Header) -> Callable[[str], Header]:
        return lambda name: frame.first(name) if frame.items.get(name) else shared.first(name)

    return [_slice(header, number, shape, of_frame(frame)) for number, frame in enumerate(frames)]


def _slice(header: Header, frame: int | None, shape: tuple[int, int], part: Callable[[str], Header]) -> Slice:
    """A slice of a file. part: sequence -> its item for this slice; the header itself without frames."""
    position = part("PlanePositionSequence").numbers("ImagePositionPatient", 3)
    orientation = part("PlaneOrientationSequence").numbers("ImageOrientationPatient", 6).reshape(2, 3)
    pixels = part("PixelMeasuresSequence")
    rows, columns = pixels.numbers("PixelSpacing", 2).tolist()
    if not (rows > 0 and columns > 0):
        raise DataError(header.name, f"{pixels.shown('PixelSpacing')}, which is impossible", FETCH)
    lengths = np.linalg.norm(orientation, axis=1)
    if not np.allclose(lengths, 1, atol=1e-3) or abs(orientation[0] @ orientation[1]) > 1e-3:
        directions = f"ImageOrientationPatient {orientation.ravel().tolist()}"
        raise DataError(header.name, f"{directions} is not a pair of orthogonal directions")
    rescale, units = _rescale(header, part("PixelValueTransformationSequence"))
    marks = tuple(_mark(name, header, frame, part) for name in MARKS)
    return Slice(header, frame, position, orientation, (columns, rows), shape, rescale, units, marks)


def _mark(name: str, header: Header, frame: int | None, part: Callable[[str], Header]) -> str:
    """The frame's field if it has one, else the file's."""
    fields = () if frame is None else FRAME_MARKS.get(name, ())
    return next(filter(None, (part(sequence).text(of) for sequence, of in fields)), header.text(name))


def _rescale(header: Header, values: Header) -> tuple[tuple[float | None, float | None], str]:
    """Slope, intercept and unit. DataError if the slope is 0, or for CT that is not in HU."""
    is_ct, units = header.modality == "CT", values.text("RescaleType").upper()
    if is_ct and not all(map(values.text, RESCALE)):
        problem = "a CT without RescaleSlope and RescaleIntercept, so its values are not HU"
        raise DataError(header.name, problem, "fetch the originals")
    if is_ct and units not in HU:
        problem = f"a CT whose {values.shown('RescaleType')}, so its values are not HU"
        raise DataError(header.name, problem, "remove the series from the folder")
    slope, intercept = (values.number(name) if values.text(name) else None for name in RESCALE)
    if slope == 0:
        raise DataError(header.name, "RescaleSlope is 0, so all values are equal", "fetch the originals")
    return (slope, intercept), units
