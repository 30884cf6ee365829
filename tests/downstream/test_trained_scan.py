"""Scans prepared as those of training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from medcl3d.core.errors import ConfigError, DataError
from medcl3d.downstream.trained_scan import (
    identity_of,
    intensity_kind,
    other_spacing,
    prepared,
    refuse_header,
)
from medcl3d.store.store import Store


@pytest.mark.parametrize(
    ("field", "example"), [("--intensity", "--intensity ct"), ("intensity", "intensity = ct")]
)
def test_the_kind_of_intensities_is_one_of_training(field: str, example: str) -> None:
    path = Path("run")
    assert intensity_kind(path, "mri", None, field) == intensity_kind(path, "ct+mri", "mri", field) == "mri"
    with pytest.raises(ConfigError, match=f"^run: trained on intensities .* as {example}$"):
        intensity_kind(path, "ct+mri", None, field)
    with pytest.raises(ConfigError, match=f"^{field} = none: run was trained on ct.mri; use ct or mri$"):
        intensity_kind(path, "ct+mri", "none", field)


def test_another_number_of_channels_is_refused(ball_store: Store) -> None:
    path, options = Path(ball_store.scans[0]["source"]["path"]), ball_store.intensity()
    assert prepared(path, options, 1, "network").stored.shape[0] == 1
    refuse_header(path, options, 1, "network")
    for check in (prepared, refuse_header):
        with pytest.raises(DataError, match=r"0\.nii\.gz: has 1 channels, the encoder takes 2"):
            check(path, options, 2, "encoder")


def test_a_voxel_size_differs_by_more_than_a_quarter() -> None:
    ready: Any = cast(Any, SimpleNamespace(affine=np.diag([1.0, 2.0, 2.6, 1.0])))
    assert other_spacing(ready, (1.0, 2.0, 2.1)) is None
    assert other_spacing(ready, (1.0, 2.0, 2.0)) == ("1, 2, 2.6", "1, 2, 2")


def test_an_identity_depends_on_weights_sidecar_and_settings(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    weights.with_suffix(".json").write_bytes(b"{}")
    first = identity_of(weights, "mri", 3)
    assert first.endswith(" mri 3") and first == identity_of(weights, "mri", 3) != identity_of(
        weights, "ct", 3
    )
    weights.with_suffix(".json").write_bytes(b"{ }")
    assert identity_of(weights, "mri", 3) != first
