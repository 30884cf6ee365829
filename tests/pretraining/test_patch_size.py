"""A suggested patch fits into scans, is a cube in mm, and fits the strides that go with it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcl3d.config.field_types import Choice
from medcl3d.encoders.network import build_network, check_patch_size
from medcl3d.pretraining.patch_size import MIN_MAP, THIN, patch_and_strides

edges = st.integers(1, 600)
spacing = st.floats(0.2, 12)


@pytest.mark.parametrize(
    ("shape", "mm", "edge", "patch"),
    [
        ((90, 120, 120), (2, 2, 2), 32, (32, 32, 32)),
        ((512, 512, 40), (0.8, 0.8, 5), 64, (112, 112, 18)),
        ((128, 128, 9), (2.6, 2.6, 9), 32, (56, 56, 8)),
        ((28, 28, 28), (1, 1, 1), 32, (20, 20, 20)),
        ((120, 120, 1), (1, 1, 8), 32, (96, 96, 1)),
    ],
)
def test_patches_of_known_scans(
    shape: tuple[int, ...], mm: tuple[float, ...], edge: int, patch: tuple[int, ...]
) -> None:
    assert patch_and_strides([shape], [mm], edge)[0] == patch


def test_a_quarter_of_small_scans_does_not_shrink_the_patch() -> None:
    shapes = [(100, 100, 100)] * 9 + [(10, 10, 10)] * 2
    assert patch_and_strides(shapes, np.ones((11, 3)), 64)[0] == (64, 64, 64)


@given(st.tuples(edges, edges, edges), st.tuples(spacing, spacing, spacing), st.sampled_from([32, 64]))
def test_a_patch_fits_the_scan_and_leaves_room_for_different_crops(
    shape: tuple[int, ...], mm: tuple[float, ...], edge: int
) -> None:
    patch, _ = patch_and_strides([shape], [mm], edge)
    assert all(1 <= size <= limit for size, limit in zip(patch, shape, strict=True))
    assert np.prod(patch) <= edge**3 + 1
    if max(shape) >= THIN:
        assert any(size < limit for size, limit in zip(patch, shape, strict=True))


@given(st.tuples(edges, edges, edges), st.tuples(spacing, spacing, spacing), st.sampled_from([32, 64]))
def test_the_strides_divide_the_patch(shape: tuple[int, ...], mm: tuple[float, ...], edge: int) -> None:
    patch, strides = patch_and_strides([shape], [mm], edge)
    total = np.prod([np.broadcast_to(stride, 3) for stride in strides], axis=0)
    assert not (np.array(patch) % total).any()
    assert (np.array(patch) // total >= np.minimum(MIN_MAP, np.array(patch))).all()


def test_an_encoder_with_the_strides_takes_the_patch() -> None:
    patch, strides = patch_and_strides([(128, 128, 9)], [(2.6, 2.6, 9)], 32)
    fields = tuple(tuple(one) if isinstance(one, list) else one for one in strides)
    network = build_network(Choice("unet3d", {"channels": (2, 2, 2, 2), "strides": fields}), 1, decoder=False)
    check_patch_size(network, patch)
