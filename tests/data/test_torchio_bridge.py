from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from medcl3d.data.torchio_bridge import resample


def world(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]


def test_a_linear_ramp_in_the_world_stays_that_ramp() -> None:
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = [-20, 5, 60]
    slope = np.array([0.3, -0.7, 1.1])
    voxels = (world((20, 16, 12), affine) @ slope).astype(np.float32)[None]
    out, new = resample(voxels, affine, (1.0, 1.0, 1.0), label=False)
    np.testing.assert_allclose(np.linalg.norm(new[:3, :3], axis=0), 1, atol=1e-6)
    expected = world(out.shape[1:], new) @ slope
    np.testing.assert_allclose(out[0][4:-4, 4:-4, 4:-4], expected[4:-4, 4:-4, 4:-4], atol=1e-3)


def test_labels_keep_their_values_and_dtype() -> None:
    voxels = np.random.default_rng(0).choice([0, 3, 207], (1, 15, 14, 13)).astype(np.int16)
    out, _ = resample(voxels, np.diag([1.0, 1, 1, 1]), (1.7, 0.6, 1.3), label=True)
    assert out.dtype == np.int16 and set(np.unique(out)) == {0, 3, 207}


def test_torchio_waits_until_it_is_needed() -> None:
    code = "import sys, medcl3d.data.prepare, medcl3d.data.store; sys.exit('torchio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
