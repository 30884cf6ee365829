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
HU = ("HU", "US", "")  # US: unspecified


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
        uid = (
            self.header.text("SOPInstanceUID")
            or self.header.text("MediaStorageSOPInstanceUID")
            or str(self.header.path)
        )
        return uid if self.frame is None else f"{uid}/{self.frame}"


def slices_of(header: Header) -> list[Slice]:
    """The slices of a file. DataError for missing geometry, colours, or invalid units."""
    kind = header.text("PhotometricInterpretation") or "MONOCHROME2"
    if header.number("SamplesPerPixel", 1) != 1 or kind != "MONOCHROME2":
        what = header.shown("PhotometricInterpretation")
        raise DataError(
            header.name, f"{what}, not grey values that grow with intensity", "convert it to MONOCHROME2"
        )
    shape = int(header.number("Columns")), int(header.number("Rows"))
    if min(shape) < 1:
        raise DataError(
            header.name, f"{shape[0]} columns and {shape[1]} rows are not an image", "fetch the file again"
        )
    num_frames = int(header.number("NumberOfFrames", 1))
    frames = header.items.get("PerFrameFunctionalGroupsSequence")
    if frames is None:
        if num_frames > 1:
            raise DataError(
                header.name, "has several frames without positions", "convert it to one file per slice"
            )
        return [
            _slice(
                header,
                None,
                header,
                header,
                header,
                header,
                shape,
                tuple(header.text(mark) for mark in MARKS),
            )
        ]
    if len(frames) != num_frames:
        raise DataError(
            header.name,
            f"NumberOfFrames is {num_frames}, but {len(frames)} have a position",
            "fetch the file again",
        )
    shared = header.first("SharedFunctionalGroupsSequence")
    found = []
    for number, frame in enumerate(frames):

        def part(name: str, frame: Header = frame) -> Header:
            return frame.first(name) if frame.items.get(name) else shared.first(name)

        geometry = (
            part("PlanePositionSequence"),
            part("PlaneOrientationSequence"),
            part("PixelMeasuresSequence"),
        )
        values = part("PixelValueTransformationSequence")
        found.append(
            _slice(
                header, number, *geometry, values, shape, tuple(_mark(name, part, header) for name in MARKS)
            )
        )
    return found


def _mark(name: str, part: Callable[[str], Header], header: Header) -> str:
    """The frame's field if it has one, else the file's."""
    texts = (part(sequence).text(of) for sequence, of in FRAME_MARKS.get(name, ()))
    return next(filter(None, texts), header.text(name))


def _slice(
    header: Header,
    frame: int | None,
    place: Header,
    plane: Header,
    pixels: Header,
    values: Header,
    shape: tuple[int, int],
    marks: tuple[str, ...],
) -> Slice:
    position = place.numbers("ImagePositionPatient", 3)
    orientation = plane.numbers("ImageOrientationPatient", 6).reshape(2, 3)
    rows, columns = pixels.numbers("PixelSpacing", 2).tolist()
    if not (rows > 0 and columns > 0):
        raise DataError(
            header.name, f"{pixels.shown('PixelSpacing')}, which is impossible", "fetch the file again"
        )
    lengths = np.linalg.norm(orientation, axis=1)
    if not np.allclose(lengths, 1, atol=1e-3) or abs(orientation[0] @ orientation[1]) > 1e-3:
        raise DataError(
            header.name,
            f"ImageOrientationPatient {orientation.ravel().tolist()} is not a pair of orthogonal directions",
        )
    rescale, units = _rescale(header, values)
    return Slice(header, frame, position, orientation, (columns, rows), shape, rescale, units, marks)


def _rescale(header: Header, values: Header) -> tuple[tuple[float | None, float | None], str]:
    """Slope, intercept and unit. DataError if the slope is 0, or for CT that is not in HU."""
    is_ct, units = header.modality == "CT", values.text("RescaleType").upper()
    if is_ct and not (values.text("RescaleSlope") and values.text("RescaleIntercept")):
        raise DataError(
            header.name,
            "a CT without RescaleSlope and RescaleIntercept, so its values are not HU",
            "fetch the originals",
        )
    if is_ct and units not in HU:
        raise DataError(
            header.name,
            f"a CT whose {values.shown('RescaleType')}, so its values are not HU",
            "remove the series from the folder",
        )
    slope, intercept = (
        values.number(name) if values.text(name) else None for name in ("RescaleSlope", "RescaleIntercept")
    )
    if slope == 0:
        raise DataError(header.name, "RescaleSlope is 0, so all values are equal", "fetch the originals")
    return (slope, intercept), units
