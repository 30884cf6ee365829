"""Differences of preparation between pretraining and these scans."""

from __future__ import annotations

import re
from typing import Any

import pytest

from medcl3d.downstream.unlike_pretraining import median_spacing, unlike_pretraining
from medcl3d.store.store import Store


def described(store: Store, **changed: Any) -> dict[str, Any]:
    """The sidecar of a pretraining on the same store, with changes of its intensities."""
    return {"spacing_mm": median_spacing(store), "intensity": {**store.intensity(), **changed}}


def test_the_same_store_has_no_difference(ball_store: Store) -> None:
    assert unlike_pretraining(ball_store, described(ball_store)) == []
    assert unlike_pretraining(ball_store, {}) == []  # nothing is known


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"percentiles": [1, 99]},
            r"percentiles \[1, 99\], these scans have \[0.5, 99.5\]; prepare them with ",
        ),
        ({"value_range": [0, 1]}, r"value_range \[0, 1\], these scans have None; .* value_range=\[0,1\]"),
        ({"kind": "ct"}, "pretrained on intensities of kind ct, these scans are prepared as mri"),
    ],
)
def test_other_intensities_are_named_with_the_option(
    ball_store: Store, changed: dict[str, Any], message: str
) -> None:
    (found,) = unlike_pretraining(ball_store, described(ball_store, **changed))
    assert re.search(message, found)


def test_windows_of_ct_do_not_matter_to_mr(ball_store: Store) -> None:
    assert unlike_pretraining(ball_store, described(ball_store, window_hu=[-100, 100])) == []


def test_another_voxel_size_is_named(ball_store: Store) -> None:
    pretrained = described(ball_store) | {"spacing_mm": [9.0, 9.0, 9.0]}
    (found,) = unlike_pretraining(ball_store, pretrained)
    assert "pretrained at [9.0, 9.0, 9.0] mm per voxel" in found
