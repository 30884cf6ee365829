"""Compressed series: single files through SimpleITK, frames through pydicom and GDCM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medcl3d.datasets.sources.dicom import dicom
from tests.datasets.dicoms import item, pydicom, the_only, write_frames, write_series

gdcm = pytest.importorskip("gdcm", reason="python-gdcm of the extra dicom encodes and decodes")
CODECS = ("JPEGLosslessProcess14_1", "JPEG2000Lossless", "JPEGLSLossless", "RLELossless")
VOXELS = np.random.default_rng(0).integers(0, 2000, (5, 32, 16)).astype(np.int16)


def compress(folder: Path, codec: str) -> None:
    """Compress all files of a folder in place."""
    for path in folder.iterdir():
        reader, writer, change = gdcm.ImageReader(), gdcm.ImageWriter(), gdcm.ImageChangeTransferSyntax()
        reader.SetFileName(str(path))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, codec)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(path))
        assert writer.Write()
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID.is_compressed


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("enhanced", [False, True])
def test_compressed_voxels_equal_uncompressed_ones(tmp_path: Path, codec: str, enhanced: bool) -> None:
    found = {}
    for name in ("raw", codec):
        folder = tmp_path / name
        folder.mkdir()
        if enhanced:
            places = [[item(ImagePositionPatient=[10, 20, 30.0 + 3 * n])] for n in range(len(VOXELS))]
            write_frames(folder / "a", VOXELS, [item(PlanePositionSequence=place) for place in places])
        else:
            write_series(folder, VOXELS)
        if name == codec:
            compress(folder, codec)
        found[name] = the_only(dicom(folder, tmp_path / f"out_{name}"))
    for raw, decoded in zip(found["raw"], found[codec], strict=True):
        np.testing.assert_array_equal(raw, decoded)
