"""Small DICOM series for tests, with the fields that scanners write; any field may be changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medcl3d.datasets.manifest import Manifest

pydicom = pytest.importorskip("pydicom")

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
SHAPE = (7, 6)  # rows, columns
VOXELS = np.arange(5 * 7 * 6, dtype=np.int16).reshape(5, 7, 6)


def write_slice(path: Path, pixels: np.ndarray, sop_class: str = CT, **fields: Any) -> None:
    """Write one image file; fields with value None are omitted."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = sop_class, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = fields.get("SOPInstanceUID") or "1.2.3"
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = sop_class
    dataset.PixelData = pixels.tobytes()
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    for name, value in fields.items():
        if value is not None:
            setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def write_series(
    folder: Path,
    voxels: np.ndarray = VOXELS,
    uid: str = "1.2.9",
    change: Callable[[int], dict[str, Any]] | None = None,
    **fields: Any,
) -> Path:
    """Write a CT of slices 3 mm apart, with unordered file names; `change` gives fields per slice."""
    for number, pixels in enumerate(voxels):
        own = {
            "SOPInstanceUID": f"{uid}.{number + 1}",
            "SeriesInstanceUID": uid,
            "StudyInstanceUID": "1.2.8",
            "FrameOfReferenceUID": "1.2.7",
            "Modality": "CT",
            "PatientID": "007",
            "PatientName": "Doe^Jane",
            "StudyDate": "20200131",
            "InstanceNumber": number + 1,
            "ImagePositionPatient": [10.0, 20.0, 30.0 + 3 * number],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "PixelSpacing": [2.0, 1.5],
            "RescaleSlope": 2,
            "RescaleIntercept": -100,
        }
        path = folder / f"IM{(number * 7) % 10 + number // 10 * 10}_{uid.replace('.', '')}"
        write_slice(path, pixels, **{**own, **fields, **(change(number) if change else {})})
    return folder


def spoil(path: Path, keyword: str, vr: str, value: bytes) -> None:
    """Give a field bytes that its type does not allow."""
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    dataset = pydicom.dcmread(path)
    tag = Tag(keyword)
    dataset._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    dataset.save_as(path)


def without_preamble(path: Path, *, implicit: bool) -> None:
    """Rewrite a file without the preamble, as in old archives."""
    from pydicom.filebase import DicomFileLike
    from pydicom.filewriter import write_dataset

    dataset = pydicom.dcmread(path)
    dataset.remove_private_tags()
    with open(path, "wb") as file:
        out = DicomFileLike(file)
        out.is_little_endian, out.is_implicit_VR = True, implicit
        write_dataset(out, pydicom.Dataset(dict(dataset.items())))


def item(**fields: Any) -> Any:
    """An item of a sequence."""
    dataset = pydicom.Dataset()
    for name, value in fields.items():
        setattr(dataset, name, value)
    return dataset


def write_frames(path: Path, voxels: np.ndarray, frames: list[Any], **fields: Any) -> None:
    """Write an enhanced MR: all slices in one file, each with its own item."""
    plane, pixels = [item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])], [item(PixelSpacing=[2, 1.5])]
    about = {
        "SeriesInstanceUID": "1.2.9",
        "SOPInstanceUID": "1.2.9.1",
        "Modality": "MR",
        "PatientID": "007",
        "NumberOfFrames": len(voxels),
        "PerFrameFunctionalGroupsSequence": frames,
        "SharedFunctionalGroupsSequence": [
            item(PlaneOrientationSequence=plane, PixelMeasuresSequence=pixels)
        ],
    }
    write_slice(path, voxels, sop_class=ENHANCED_MR, **{**about, **fields})


def the_only(manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and affine of a collection of one scan."""
    assert len(manifest) == 1 and not manifest.faults, manifest.faults
    image = nibabel.load(manifest.locate(manifest.table["path"].iloc[0]))
    return np.asarray(image.dataobj), image.affine


def fault_of(manifest: Manifest) -> str:
    """The fault of the only refused series."""
    (fault,) = manifest.faults.values()
    assert "\n" not in fault
    return fault


def shifted(at: int, mm: float) -> Callable[[int], dict[str, Any]]:
    """Slices from `at` on are shifted by `mm`."""
    return lambda n: {"ImagePositionPatient": [10.0, 20.0, 30.0 + 3 * n + (mm if n >= at else 0)]}
