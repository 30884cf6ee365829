"""Sizes of a first run."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from medcl3d.datasets.label_pairs import Grid
from medcl3d.proposal.scan_files import ras_grids
from medcl3d.proposal.sizes import Machine, choose_sizes

CPU, GPU = Machine(0, "processor"), Machine(80 << 30, "accelerator")


def grids(shape: tuple, mm: tuple, num: int = 40) -> pd.DataFrame:
    return pd.DataFrame([(*shape, *mm)] * num, columns=["x", "y", "z", "x_mm", "y_mm", "z_mm"])


@pytest.mark.parametrize(
    ("shape", "mm", "machine", "patch"),
    [
        ((180, 220, 180), (1, 1, 1), CPU, (32, 32, 32)),
        ((180, 220, 180), (1, 1, 1), GPU, (96, 96, 96)),
        ((128, 128, 10), (2.6, 2.6, 9), CPU, (56, 56, 10)),  # short stacks: the whole height
        ((512, 512, 94), (0.8, 0.8, 5), CPU, (56, 56, 8)),  # thick slices: as many mm along each axis
        ((36, 50, 35), (1, 1, 1), CPU, (32, 32, 32)),
        ((28, 28, 28), (1, 1, 1), GPU, (20, 20, 20)),  # room for two different crops
    ],
)
def test_a_patch_fits_scans_and_machine(shape: tuple, mm: tuple, machine: Machine, patch: tuple) -> None:
    assert choose_sizes(grids(shape, mm), machine).patch_size == patch


def test_a_patch_is_divisible_by_the_strides_of_its_encoder() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        sizes = choose_sizes(
            grids(rng.integers(3, 300, 3), rng.uniform(0.3, 8, 3)), CPU if rng.random() < 0.5 else GPU
        )
        assert len(sizes.strides) == len(sizes.channels) and min(sizes.patch_size) >= 1
        total = np.prod([np.broadcast_to(stride, 3) for stride in sizes.strides], axis=0)
        assert not (np.array(sizes.patch_size) % total).any()


def test_different_spacings_are_resampled_to_the_median() -> None:
    mixed = pd.concat([grids((60, 60, 60), (1, 1, 1)), grids((30, 30, 30), (2, 2, 2), 20)])
    assert choose_sizes(mixed, CPU).spacing == "median"
    assert choose_sizes(grids((60, 60, 60), (1, 1, 1)), CPU).spacing == "keep"


def test_steps_grow_with_the_scans_within_limits() -> None:
    few, more, most = (
        choose_sizes(grids((64, 64, 64), (1, 1, 1), num), CPU).steps for num in (10, 100, 9999)
    )
    assert (few, more, most) == (300, 700, 1000)


def test_grids_are_along_right_front_and_head() -> None:
    affine = np.array([[0, 0, -3.0, 0], [1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]])
    row = ras_grids([Grid((10, 20, 30, 4), affine)]).iloc[0]
    assert row.tolist() == [30, 10, 20, 3, 1, 2]
