"""A prepared collection of bright balls with known position and size."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medcl3d.preprocessing.options import prepare_options
from medcl3d.preprocessing.prepare import prepare
from medcl3d.store.store import Store

NUM_PATIENTS = 8


def write_balls(root: Path, num_patients: int = NUM_PATIENTS) -> None:
    """Scans of 2 mm slices: a bright ball (class 1) in noise, and a dark cube (class 3) in all but the
    first.
    """
    rng = np.random.default_rng(0)
    rows = ["scan,patient,path,label,split"]
    for i in range(num_patients):
        shape = (20, 24, 12) if i % 2 else (24, 22, 20)
        grid = np.indices(shape)
        spacing = np.array([1.0, 1.0, 2.0]) if i % 2 else np.ones(3)
        centre = np.array(shape) / 2 + rng.uniform(-2, 2, 3)
        ball = (((grid - centre[:, None, None, None]) * spacing[:, None, None, None]) ** 2).sum(
            0
        ) < rng.uniform(5, 7) ** 2
        labels = ball.astype(np.uint8)
        if i:
            labels[1:5, 2:6, 2:5] = 3
        voxels = rng.normal(100, 8, shape) + 80.0 * (labels == 1) - 60.0 * (labels == 3)
        affine = np.diag([*spacing, 1.0])
        nib.save(nib.Nifti1Image(voxels.astype(np.float32), affine), root / f"{i}.nii.gz")
        nib.save(nib.Nifti1Image(labels, affine), root / f"{i}_label.nii.gz")
        # The last training patient has no label.
        label = "" if i == num_patients - 3 else f"{i}_label.nii.gz"
        rows.append(
            f"scan{i},p{i},{i}.nii.gz,{label},{'test' if i >= num_patients - 2 or i == 0 else 'train'}"
        )
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    (root / "labels.json").write_text(json.dumps({"0": "background", "1": "ball", "3": "cube"}))


@pytest.fixture(scope="session")
def ball_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Test patients: p0 (no cube), p6, p7; training: p1 to p5, of whom p5 has no label.

    Read it, write elsewhere.
    """
    raw, out = tmp_path_factory.mktemp("balls_raw"), tmp_path_factory.mktemp("balls")
    write_balls(raw)
    given = prepare_options("csv", {"workers": 1})
    prepare("csv", raw, out, fields=given.fields, options=given.options)
    return out


@pytest.fixture(scope="session")
def ball_store(ball_root: Path) -> Store:
    """The opened store."""
    return Store.open(ball_root)
