"""Small DICOM series for tests, with what a scanner writes into them; any field may be changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
SHAPE = (7, 6)  # rows, columns
VOXELS = np.arange(5 * 7 * 6, dtype=np.int16).reshape(5, 7, 6)


def write_slice(path: Path, pixels: np.ndarray, sop_class: str = CT, **fields: Any) -> None:
    """One image file; a field that is None is left out."""
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
    folder: Path, voxels: np.ndarray = VOXELS, uid: str = "1.2.9", change: Callable[[int], dict[str, Any]] | None = None, **fields: Any
) -> Path:
    """A CT of slices 3 mm apart, in files whose names say nothing of their order; `change` gives a slice fields of its own."""
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
        path = folder / f"IM{(number * 7) % 10}_{uid.replace('.', '')}"
        write_slice(path, pixels, **{**own, **fields, **(change(number) if change else {})})
    return folder
