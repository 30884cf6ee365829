"""Common fixtures and settings: small data, one thread per process, deterministic examples."""

from __future__ import annotations

import gzip
import os
import signal
from collections.abc import Callable
from pathlib import Path

import hypothesis
import jaxtyping
import nibabel
import numpy as np
import pytest

from tests.shapes import CHECKED

if os.environ.get("CHECK_SHAPES") == "1":
    jaxtyping.install_import_hook(CHECKED, "tests.shapes.check")

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for processes that tests start

hypothesis.settings.register_profile("fast", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.register_profile(
    "thorough", deadline=None, max_examples=1000
)  # new examples in every run
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


def pytest_configure() -> None:
    """Use one thread, faster than two for small volumes, and handle SIGHUP, which `nohup` ignores."""
    import torch

    torch.set_num_threads(1)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real scans beside the checkout."""
    root = Path(__file__).parents[2] / "shared" / "data"
    if not root.is_dir():
        pytest.skip(f"the folder of real scans is missing: {root}")
    return root


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared simulated cohort: 6 patients, up to 2 visits, 2 modalities, 32^3 voxels. Read-only."""
    from medcl3d.preprocessing.options import prepare_options
    from medcl3d.preprocessing.prepare import prepare

    out = tmp_path_factory.mktemp("tiny") / "store"
    given = prepare_options("simulated", {"num_patients": 6, "shape": [32, 32, 32], "workers": 1})
    prepare("simulated", None, out, fields=given.fields, options=given.options)
    return out


REAL = Path(__file__).resolve().parents[1].parent / "shared" / "data"


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
