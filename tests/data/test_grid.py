"""The grid that a scan will have is known before it is made, and one that cannot be held is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchio as tio

from medcl3d.data import grid
from medcl3d.data.grid import grid_at, memory_bytes, refuse_what_does_not_fit
from medcl3d.errors import DataError

TILT = np.radians(9)
OBLIQUE = np.array([[np.cos(TILT), -np.sin(TILT), 0, 5], [np.sin(TILT), np.cos(TILT), 0, -7], [0, 0, 1, 20], [0, 0, 0, 1.0]])


@pytest.mark.parametrize("spacing", [(2.0, 1.5, 2.5), (0.7, 1.2, 5.0), (1.0, 1.0, 1.0)])
def test_the_grid_is_that_of_torchio(spacing) -> None:
    affine = OBLIQUE @ np.diag([0.9, 1.2, 2.9, 1])
    image = tio.ScalarImage(tensor=torch.rand(1, 31, 40, 22), affine=affine)
    theirs = tio.Resample(spacing)(image)
    size, made = grid_at(image.spatial_shape, affine, spacing)
    assert size == theirs.spatial_shape
    np.testing.assert_allclose(made, theirs.affine, atol=1e-9)


def test_no_axis_is_left_without_a_voxel() -> None:
    assert grid_at((10, 1, 3), np.eye(4), (20, 5, 2))[0] == (1, 1, 1)


def test_what_does_not_fit_is_refused_with_its_size(monkeypatch) -> None:
    path = Path("a.nii.gz")
    turned = np.array([[0, 0, 3000.0, 0], [1000, 0, 0, 0], [0, 2000, 0, 0], [0, 0, 0, 1]])  # right, front and head along Z, X and Y
    with pytest.raises(DataError, match=r"a\.nii\.gz: voxels of 1e\+03 x 2e\+03 x 3e\+03 mm: .* would be 15000x5000x10000, which"):
        refuse_what_does_not_fit(path, (1, 10, 10, 10), turned, (2.0, 2.0, 2.0))
    refuse_what_does_not_fit(path, (1, 10, 10, 10), turned, (1000.0, 1000.0, 1000.0))
    monkeypatch.setattr(grid, "memory_bytes", lambda: 4 * 4 * 1000)
    refuse_what_does_not_fit(path, (1, 10, 10, 10), np.eye(4), (1.0, 1.0, 1.0))
    with pytest.raises(DataError, match=r"1\.76e-05 GB where 1\.6e-05 GB are; correct the header, set assume_spacing_mm, or"):
        refuse_what_does_not_fit(path, (1, 10, 10, 11), np.eye(4), (1.0, 1.0, 1.0))


def test_the_memory_here_is_told() -> None:
    assert 1e8 < memory_bytes() < 1e15
