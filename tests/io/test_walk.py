from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medcl3d.io.walk import files_under, volumes_under

RAMP = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


@pytest.fixture
def tree(tmp_path: Path, write_nifti: Callable[..., Path]) -> Path:
    """One scan that is read, and one of each format that is not."""
    write_nifti("tree/b/good.nii.gz", RAMP)
    write_nifti("tree/UP.nii.gz", RAMP).rename(tmp_path / "tree" / "UP.NII.GZ")
    for name in (
        "a/x.mha",
        "a/y.nrrd",
        "p.img",
        "p.hdr",
        "z.MGZ",
        "series/slice.dcm",
        "notes.txt",
        "Makefile",
        ".hidden.mha",
    ):
        (tmp_path / "tree" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(b"text")
    (tmp_path / "tree" / "series" / "CT.1.2.840.583").write_bytes(bytes(128) + b"DICM")
    os.mkfifo(tmp_path / "tree" / "IM0001")
    return tmp_path / "tree"


def test_scans_that_are_not_read_are_counted_and_named(tree: Path) -> None:
    volumes, notes = volumes_under(tree)
    assert volumes == [Path("b/good.nii.gz")]
    assert sorted(notes) == [
        "1 files *.NII.GZ are not read; rename them to *.nii.gz (UP.NII.GZ)",
        "1 files *.img are not read; convert them to .nii.gz (p.img)",
        "1 files *.mgz are not read; convert them to .nii.gz (z.MGZ)",
        "1 files *.mha are not read; convert them to .nii.gz (a/x.mha)",
        "1 files *.nrrd are not read; convert them to .nii.gz (a/y.nrrd)",
        "2 DICOM files are not read; prepare them with the source dicom (series/CT.1.2.840.583, "
        "series/slice.dcm)",
    ]


def test_an_unreadable_folder_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def closed(folder: str):
        if str(folder).endswith("/b"):
            raise PermissionError(13, "Permission denied", folder)
        return real(folder)

    monkeypatch.setattr(os, "scandir", closed)
    volumes, notes = volumes_under(tree)
    assert volumes == [] and notes[-1] == "1 folders cannot be read: Permission denied (b)"
    assert Path("b/good.nii.gz") not in list(files_under(tree))
