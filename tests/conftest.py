"""What all tests share: small data, one thread a process, the same examples every time."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start

hypothesis.settings.register_profile("fast", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=1000)  # other examples every time
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


def pytest_configure() -> None:
    """Small volumes are slower on two threads than on one."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real scans that lie beside the checkout."""
    root = Path(__file__).parents[2] / "shared" / "data"
    if not root.is_dir():
        pytest.skip(f"the real scans are not there: {root}")
    return root


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared simulated cohort: 6 patients, up to 2 visits, 2 modalities, 32^3 voxels. Read it, write elsewhere."""
    from medcl3d.data.options import prepare_options
    from medcl3d.data.prepare import prepare

    out = tmp_path_factory.mktemp("tiny") / "store"
    given = prepare_options("simulated", {"num_patients": 6, "shape": [32, 32, 32], "workers": 1})
    prepare("simulated", None, out, fields=given.fields, options=given.options)
    return out
