from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medcl3d.datasets.dicom.tilt import AIR
from medcl3d.datasets.sources.dicom import dicom
from tests.datasets.dicoms import fault_of, the_only, write_series

SIZE, GAP_MM, PIXEL_MM = (16, 30, 28), 2.5, (1.1, 0.9)  # slices, rows, columns; between slices, rows, columns
CENTRE = np.array([12.0, 40.0, 45.0])  # mm, LPS


def phantom(lps: np.ndarray) -> np.ndarray:
    """HU at points ``[..., 3]``: a soft ball in air."""
    return -1000 + 1400 * np.exp(-(((lps - CENTRE) / 5) ** 2).sum(-1))


def tilted(folder: Path, degrees: float, **fields: Any) -> tuple[Path, np.ndarray]:
    """Planes tilted about the left-right axis, with a straight table; and the position of each voxel."""
    angle = np.radians(degrees)
    rows, columns = np.array([1.0, 0, 0]), np.array([0, np.cos(angle), -np.sin(angle)])
    number, row, column = np.meshgrid(*(np.arange(n) for n in SIZE), indexing="ij")
    start, step = np.array([0.0, 24.0, 26.0 + 16 * np.sin(angle)]), np.array([0, 0, GAP_MM])
    lps = (
        start
        + number[..., None] * step
        + row[..., None] * PIXEL_MM[0] * columns
        + column[..., None] * PIXEL_MM[1] * rows
    )
    voxels = np.round(phantom(lps)).astype(np.int16)
    about: dict[str, Any] = {
        "PixelSpacing": list(PIXEL_MM),
        "RescaleSlope": 1,
        "RescaleIntercept": 0,
        **fields,
    }
    write_series(
        folder,
        voxels,
        change=lambda n: {"ImagePositionPatient": (start + n * step).tolist()},
        ImageOrientationPatient=[*rows, *columns],
        **about,
    )
    return folder, lps


def points_of(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """``[X, Y, Z, 3]`` mm, LPS, of each voxel's centre."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in voxels.shape), indexing="ij"), axis=-1)
    return (index @ affine[:3, :3].T + affine[:3, 3]) * [-1, -1, 1]


@pytest.mark.parametrize("degrees", [-20.0, 8.0, 17.5])
def test_a_ball_under_a_tilted_gantry_keeps_its_position(tmp_path: Path, degrees: float) -> None:
    folder, lps = tilted(tmp_path / "in", degrees)
    manifest = dicom(folder, tmp_path / "raw", tilt="resample")
    voxels, affine = the_only(manifest)
    assert f"tilted by {abs(degrees):.1f} degrees: resampled upright, -1000 HU outside" in " ".join(
        manifest.notes
    )
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    np.testing.assert_allclose(affine[:3, :3].T @ affine[:3, :3], np.diag(spacing**2), atol=1e-6)
    np.testing.assert_allclose(spacing, [0.9, 1.1, GAP_MM * np.cos(np.radians(degrees))], rtol=1e-5)
    points, mass = points_of(voxels, affine), voxels - AIR
    np.testing.assert_allclose((points * mass[..., None]).sum((0, 1, 2)) / mass.sum(), CENTRE, atol=0.002)
    inside = np.linalg.norm(points - CENTRE, axis=-1) < 9  # linear interpolation flattens the top a little
    assert np.abs(voxels - phantom(points))[inside].max() < 17
    assert voxels.min() == AIR and voxels.shape[1] > SIZE[1], "the grid contains all slices"
    before = phantom(lps) - AIR
    assert mass.sum() == pytest.approx(before.sum(), rel=1e-3), "nothing is lost"


@pytest.mark.parametrize("degrees", [-20.0, 17.5])
def test_upright_voxels_equal_those_of_simpleitk(tmp_path: Path, degrees: float) -> None:
    """SimpleITK has no sheared grids: the slices are an orthogonal image, and the shear a transform."""
    import SimpleITK as sitk

    folder, lps = tilted(tmp_path / "in", degrees)
    voxels, affine = the_only(dicom(folder, tmp_path / "raw", tilt="resample"))
    straight = sitk.GetImageFromArray(np.round(phantom(lps)).astype(np.float64))
    basis = np.stack(
        [lps[0, 0, 1] - lps[0, 0, 0], lps[0, 1, 0] - lps[0, 0, 0], lps[1, 0, 0] - lps[0, 0, 0]], axis=1
    )
    grid = sitk.Image([int(n) for n in voxels.shape], sitk.sitkFloat64)
    flip = np.diag([-1.0, -1, 1])
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    grid.SetOrigin((flip @ affine[:3, 3]).tolist())
    grid.SetSpacing(spacing.tolist())
    grid.SetDirection((flip @ affine[:3, :3] / spacing).ravel().tolist())
    to_index = np.linalg.inv(basis)
    shear = sitk.AffineTransform(to_index.ravel().tolist(), (-to_index @ lps[0, 0, 0]).tolist())
    theirs = sitk.GetArrayFromImage(sitk.Resample(straight, grid, shear, sitk.sitkLinear, AIR)).transpose(
        2, 1, 0
    )
    index = (points_of(voxels, affine) - lps[0, 0, 0]) @ to_index.T
    inside = ((index[..., :2] > 1e-3) & (index[..., :2] < np.array([SIZE[2], SIZE[1]]) - 1 - 1e-3)).all(-1)
    assert inside.mean() > 0.6
    np.testing.assert_allclose(voxels[inside], theirs[inside], atol=1e-3)
    outside = ((index[..., :2] < -1) | (index[..., :2] > np.array([SIZE[2], SIZE[1]]))).any(-1)
    assert outside.mean() > 0.1 and (voxels[outside] == AIR).all()


def test_a_tilt_is_refused_by_default_and_for_other_modalities(tmp_path: Path) -> None:
    folder, _ = tilted(tmp_path / "in", 17.5)
    assert "the gantry is tilted (17.5 degrees); set tilt=resample" in fault_of(
        dicom(folder, tmp_path / "raw")
    )
    magnet, _ = tilted(tmp_path / "mr", 17.5, Modality="MR")
    assert "only a CT has a gantry tilt" in fault_of(dicom(magnet, tmp_path / "raw", tilt="resample"))


def test_a_slice_off_the_line_of_the_others_is_not_a_tilt(tmp_path: Path) -> None:
    folder = write_series(
        tmp_path / "in", change=lambda n: {"ImagePositionPatient": [10.0, 20.0 + 4 * (n == 2), 30.0 + 3 * n]}
    )
    assert "is 4.0 mm off the line of the others" in fault_of(
        dicom(folder, tmp_path / "raw", tilt="resample")
    )
