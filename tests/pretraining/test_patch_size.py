"""A suggested patch fits into scans, is a cube in mm, and fits the strides that go with it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcl3d.config.field_types import Choice
from medcl3d.encoders.network import build_network, check_patch_size
from medcl3d.pretraining.patch_size import strides_for, suggested_patch_size

edges = st.integers(1, 600)
spacing = st.floats(0.2, 12)


@pytest.mark.parametrize(
    ("shape", "mm", "longest", "patch"),
    [
        ((90, 120, 120), (2, 2, 2), 32, (32, 32, 32)),
        ((512, 512, 40), (0.8, 0.8, 5), 64, (64, 64, 8)),
        ((128, 128, 9), (2.6, 2.6, 9), 64, (64, 64, 8)),
        ((28, 28, 28), (1, 1, 1), 32, (24, 24, 24)),
        ((120, 120, 1), (1, 1, 8), 32, (32, 32, 1)),
    ],
)
def test_patches_of_known_scans(
    shape: tuple[int, ...], mm: tuple[float, ...], longest: int, patch: tuple[int, ...]
) -> None:
    assert suggested_patch_size([shape], [mm], longest) == patch


def test_a_quarter_of_small_scans_does_not_shrink_the_patch() -> None:
    shapes = [(100, 100, 100)] * 9 + [(10, 10, 10)] * 2
    assert suggested_patch_size(shapes, np.ones((11, 3)), 64) == (64, 64, 64)


@given(st.tuples(edges, edges, edges), st.tuples(spacing, spacing, spacing), st.sampled_from([32, 64]))
def test_a_patch_fits_the_scan_and_leaves_room_for_different_crops(
    shape: tuple[int, ...], mm: tuple[float, ...], longest: int
) -> None:
    patch = suggested_patch_size([shape], [mm], longest)
    assert all(1 <= edge <= limit for edge, limit in zip(patch, shape, strict=True))
    assert max(patch) <= longest
    if max(shape) >= 16:
        assert any(edge < limit for edge, limit in zip(patch, shape, strict=True))


@pytest.mark.parametrize(
    "patch", [(32, 32, 32), (64, 64, 8), (32, 32, 4), (24, 40, 24), (16, 8, 2), (32, 32, 1)]
)
def test_the_strides_divide_the_patch_and_keep_two_voxels(patch: tuple[int, ...]) -> None:
    choice = Choice(
        "unet3d", {"channels": (2, 2, 2, 2), "strides": tuple(map(_hashable, strides_for(patch)))}
    )
    network = build_network(choice, 1, decoder=False)
    check_patch_size(network, patch)
    coarsest = np.array(patch) // network.minimum_multiple
    assert (coarsest >= np.minimum(2, patch)).all()


def _hashable(stride: int | list[int]) -> int | tuple[int, ...]:
    return tuple(stride) if isinstance(stride, list) else stride
