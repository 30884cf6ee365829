"""A folder of raw scans as people have them: cohorts, umlauts, blanks, label maps, a DICOM series."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.datasets.dicoms import write_series

SHAPE = (24, 20, 16)


def grey(seed: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, shape).astype(np.int16)


def label_map(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    made = np.zeros(shape, dtype=np.uint8)
    made[4:10, 4:10, 4:10] = 1
    return made


@pytest.fixture
def scans(tmp_path: Path, write_nifti: Callable[..., Path]) -> Path:
    """Four people with two sessions, three CTs, one DICOM series; each with a label map."""
    root = tmp_path / "Meine Scans"
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[:3, 3] = 5
    for number, person in enumerate(("Müller, Hans", "Schmidt Eva", "O'Neill", "Ünal Cem")):
        for date in ("2019-01-31", "2020-02-28"):
            folder = f"{root}/Köpfe/{person}/{date}"
            write_nifti(f"{folder}/T1.nii.gz", grey(number), affine)
            write_nifti(f"{folder}/FLAIR.nii.gz", grey(number + 9), affine)
        write_nifti(f"{folder}/T1 Maske.nii.gz", label_map(), affine)
    for number, name in enumerate(("leber", "milz", "leber_slab")):
        write_nifti(f"{root}/CT Bäuche/{name}_ct.nii.gz", grey(20 + number) - 1000, affine)
        write_nifti(f"{root}/CT Bäuche/Masken/{name}_ct.nii.gz", label_map(), affine)
    write_series(root / "CT Export/Serie 7", grey(30, (16, 20, 24)), PatientID="4711")
    of_series = np.diag([-1.5, 2.0, 3.0, 1.0])  # other axes than those of the slices
    of_series[:3, 3] = (-10, -20 - 2 * 19, 30)
    write_nifti(f"{root}/CT Export/Serie 7 seg.nii.gz", label_map()[:, ::-1], of_series)
    (root / "Notizen.txt").write_text("text")
    return root
