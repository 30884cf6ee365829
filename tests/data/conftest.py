from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture
def real() -> Path:
    """The folder of real data beside the checkout."""
    if not REAL.is_dir():
        pytest.skip(f"no real data at {REAL}")
    return REAL


@pytest.fixture(params=["npy", "blosc2"])
def container(request: pytest.FixtureRequest) -> str:
    """Each file format of a store."""
    if request.param == "blosc2":
        pytest.importorskip("blosc2")
    return request.param


@pytest.fixture
def write_nifti(tmp_path: Path) -> Callable[..., Path]:
    """Write an array as a NIfTI file under tmp_path; `change` may damage the header."""

    def write(
        name: str, array: np.ndarray, affine: np.ndarray | None = None, change: Callable | None = None
    ) -> Path:
        image = nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine, dtype=array.dtype)
        content = bytearray(image.to_bytes())
        if change is not None:
            header = nibabel.Nifti1Header(bytes(content[:348]), check=False)
            change(header)
            content[:348] = header.binaryblock
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(bytes(content), mtime=0) if name.endswith(".gz") else bytes(content))
        return path

    return write


@pytest.fixture
def cohort(tmp_path: Path, write_nifti: Callable[..., Path]) -> Path:
    """A manifest of six scans of three patients: flipped axes, anisotropic, one scan without a label."""
    rng = np.random.default_rng(0)
    rows = ["scan,patient,modality,path,label,site,age"]
    for i in range(6):
        affine = np.diag([-1.0, -1.0, 2.0, 1.0])
        affine[:3, 3] = [30 + i, 20, -10]
        voxels = rng.normal(100, 20, (12 + i, 11, 10)).astype(np.float32)
        label = (voxels > 120).astype(np.uint8)
        write_nifti(f"raw/images/{i}.nii.gz", voxels, affine)
        write_nifti(f"raw/labels/{i}.nii.gz", label, affine)
        rows.append(
            f"00{i},{i // 2:03d},MR,images/{i}.nii.gz,"
            f"{f'labels/{i}.nii.gz' if i != 5 else ''},{'NA' if i < 2 else 'EU'},{40 + i // 2}"
        )
    (tmp_path / "raw" / "manifest.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "raw"
