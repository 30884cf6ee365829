"""The grid after resampling is computed in advance, and refused if it does not fit into memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchio as tio

from medcl3d.core.errors import DataError
from medcl3d.preprocessing import resample as grid
from medcl3d.preprocessing.resample import grid_at, memory_bytes, refuse_too_large

TILT = np.radians(9)
OBLIQUE = np.array(
    [[np.cos(TILT), -np.sin(TILT), 0, 5], [np.sin(TILT), np.cos(TILT), 0, -7], [0, 0, 1, 20], [0, 0, 0, 1.0]]
)


@pytest.mark.parametrize("spacing", [(2.0, 1.5, 2.5), (0.7, 1.2, 5.0), (1.0, 1.0, 1.0)])
def test_the_grid_equals_that_of_torchio(spacing) -> None:
    affine = OBLIQUE @ np.diag([0.9, 1.2, 2.9, 1])
    image = tio.ScalarImage(tensor=torch.rand(1, 31, 40, 22), affine=affine)
    theirs = tio.Resample(spacing)(image)
    size, made = grid_at(image.spatial_shape, affine, spacing)
    assert size == theirs.spatial_shape
    np.testing.assert_allclose(made, theirs.affine, atol=1e-9)


def test_every_axis_keeps_at_least_one_voxel() -> None:
    assert grid_at((10, 1, 3), np.eye(4), (20, 5, 2))[0] == (1, 1, 1)


def test_a_grid_beyond_memory_is_refused_with_its_size(monkeypatch) -> None:
    path = Path("a.nii.gz")
    # Right, front and head along Z, X and Y.
    permuted = np.array([[0, 0, 3000.0, 0], [1000, 0, 0, 0], [0, 2000, 0, 0], [0, 0, 0, 1]])
    with pytest.raises(
        DataError,
        match=r"a\.nii\.gz: voxels of 1e\+03 x 2e\+03 x 3e\+03 mm: .* would be 15000x5000x10000, which",
    ):
        refuse_too_large(path, (1, 10, 10, 10), permuted, (2.0, 2.0, 2.0))
    refuse_too_large(path, (1, 10, 10, 10), permuted, (1000.0, 1000.0, 1000.0))
    monkeypatch.setattr(grid, "memory_bytes", lambda: 4 * 4 * 1000)
    refuse_too_large(path, (1, 10, 10, 10), np.eye(4), (1.0, 1.0, 1.0))
    with pytest.raises(
        DataError,
        match=r"which take 1\.76e-05 GB of 1\.6e-05 GB; correct the header, set assume_spacing_mm, or",
    ):
        refuse_too_large(path, (1, 10, 10, 11), np.eye(4), (1.0, 1.0, 1.0))


def test_the_memory_limit_is_plausible() -> None:
    assert 1e8 < memory_bytes() < 1e15
