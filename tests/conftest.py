"""Common fixtures and settings: small data, one thread per process, deterministic examples."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for processes that tests start

hypothesis.settings.register_profile("fast", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=1000)  # new examples in every run
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


def pytest_configure() -> None:
    """Use one thread, which is faster than two for small volumes."""
    import torch

    torch.set_num_threads(1)


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
