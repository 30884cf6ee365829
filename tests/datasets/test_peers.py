"""The sources `bids` and `dicom` against libraries that are compared if installed, never required."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from benchmarks.collection import make_tree
from medcl3d.datasets.sources.bids import bids
from medcl3d.datasets.sources.dicom import dicom
from tests.datasets.dicoms import fault_of, shifted, the_only, write_series


def with_bids2table(root: Path) -> set[str]:
    rows = pytest.importorskip("bids2table").index_dataset(root).to_pylist()
    return {row["path"] for row in rows if row["ext"] == ".nii.gz"}


def with_ancpbids(root: Path) -> set[str]:
    found = pytest.importorskip("ancpbids").load_dataset(str(root)).query(extension=".nii.gz")
    return {str(Path(one.get_absolute_path()).relative_to(root)) for one in found}


@pytest.mark.parametrize("peer", [with_bids2table, with_ancpbids])
def test_the_same_images_as_libraries(tmp_path: Path, peer: Callable[[Path], set[str]]) -> None:
    make_tree(tmp_path, 40)
    assert peer(tmp_path) == set(bids(tmp_path).table["path"])


@pytest.fixture
def dcm2niix() -> str:
    return str(pytest.importorskip("dcm2niix").bin)


def converted(program: str, folder: Path, out: Path) -> list[nibabel.Nifti1Image]:
    out.mkdir()
    subprocess.run([program, "-z", "n", "-o", out, folder], check=False, capture_output=True)
    return [nibabel.as_closest_canonical(nibabel.load(path)) for path in sorted(out.glob("*.nii"))]


def test_voxels_and_affine_of_dcm2niix(tmp_path: Path, dcm2niix: str) -> None:
    folder = write_series(tmp_path / "in")
    voxels, affine = the_only(dicom(folder, tmp_path / "out"))
    ours = nibabel.as_closest_canonical(nibabel.Nifti1Image(voxels, affine))
    (theirs,) = converted(dcm2niix, folder, tmp_path / "theirs")
    np.testing.assert_array_equal(ours.dataobj, theirs.dataobj)
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-5)


def test_dcm2niix_converts_a_series_with_a_missing_slice(tmp_path: Path, dcm2niix: str) -> None:
    """It writes the wrong spacing, and an interpolated copy beside it; we refuse the series."""
    folder = write_series(tmp_path / "in", change=shifted(3, 3.0))
    assert "1 slices are missing" in fault_of(dicom(folder, tmp_path / "out"))
    assert [one.shape[2] for one in converted(dcm2niix, folder, tmp_path / "theirs")] == [5, 6]
