"""Two passes are as accurate as one 3-D interpolation, and follow the same map."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn.functional import affine_grid, grid_sample

from medcl3d.core.geometry import Triple
from medcl3d.views.recipes import Recipe
from medcl3d.views.resampling import IN_SPACE, _way, resample, resample_nearest
from medcl3d.views.spatial import Spatial
from tests.views.test_spatial import draws

SHAPE = (20, 24, 28)


def maps_of(degrees: float, shape: Triple = SHAPE, spacing: Triple = (1, 1, 1), num: int = 8) -> torch.Tensor:
    recipe = Recipe(
        Spatial(
            affine_probability=1,
            rotation_degrees=degrees,
            scale_each_axis=True,
            shear_degrees=3,
            translation_mm=1,
        )
    )
    return recipe.voxel_map(
        draws(recipe, num, shape), shape, torch.tensor([spacing] * num, dtype=torch.float64)
    )


def by_torch(voxels: torch.Tensor, maps: torch.Tensor, mode: str = "bilinear") -> torch.Tensor:
    """The same with torch's affine grid and 3-D interpolation."""
    size = torch.tensor(voxels.shape[2:], dtype=torch.float64)
    linear, shift = maps[:, :3, :3], maps[:, :3, 3]
    offset = (2 * (linear @ ((size - 1) / 2) + shift) + 1) / size - 1
    theta = torch.cat([(linear * size / size[:, None]).flip(1, 2), offset.flip(1)[:, :, None]], dim=2)
    grid = affine_grid(theta.float(), list(voxels.shape), align_corners=False)
    return grid_sample(voxels, grid, mode=mode, padding_mode="border", align_corners=False)


def away_from_the_border(maps: torch.Tensor, shape: Triple, margin: float) -> torch.Tensor:
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    at = (
        torch.einsum("nij,dhwj->ndhwi", maps[:, :3, :3], torch.from_numpy(index).double())
        + maps[:, None, None, None, :3, 3]
    )
    return ((at >= margin) & (at <= torch.tensor(shape) - 1 - margin)).all(-1)[:, None]


@pytest.mark.parametrize(
    ("degrees", "spacing", "ways"),
    [(12, (1, 1, 1), {0}), (20, (3, 1, 1), {0, 1, 2}), (60, (1, 1, 1), {0, 1, 2, IN_SPACE})],
)
def test_a_linear_ramp_is_exact_with_every_method(degrees: float, spacing: Triple, ways: set[int]) -> None:
    maps = maps_of(degrees, spacing=spacing, num=30)
    assert set(_way(maps).tolist()) == ways
    d, h, w = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in SHAPE), indexing="ij")
    ramp = torch.stack([d, h, w, d - 2 * h + 3 * w]).expand(30, 4, *SHAPE)
    inner = away_from_the_border(maps, SHAPE, 1)
    difference = (resample(ramp, maps) - by_torch(ramp, maps)).abs() * inner
    assert inner.double().mean() > 0.2 and difference.max() < 2e-3


def test_a_textured_crop_differs_from_trilinear_less_than_trilinear_from_the_truth() -> None:
    rng = np.random.default_rng(0)
    fine = gaussian_filter(rng.normal(size=(8, *(2 * n for n in SHAPE))), (0, 2.5, 2.5, 2.5), mode="nearest")
    fine /= fine.std()
    crops = torch.from_numpy(fine[:, None, ::2, ::2, ::2]).float()
    maps = maps_of(15)
    doubled = maps.clone()
    doubled[:, :3, 3] *= 2  # the same map on the grid twice as fine, of which the crop is every other voxel
    fine_index = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1)
    at = (
        torch.einsum("nij,dhwj->ndhwi", maps[:, :3, :3], torch.from_numpy(fine_index).double())
        + maps[:, None, None, None, :3, 3]
    )
    size = torch.tensor([2 * n for n in SHAPE])
    truth = grid_sample(
        torch.from_numpy(fine)[:, None],
        ((2 * (2 * at) + 1) / size - 1).flip(-1),
        padding_mode="border",
        align_corners=False,
    )
    inner = away_from_the_border(maps, SHAPE, 2)
    ours, torchs = (
        (a - truth.float())[inner].square().mean().sqrt()
        for a in (resample(crops, maps), by_torch(crops, maps))
    )
    assert ours < 1.3 * torchs and ours < 0.2


def test_steep_maps_equal_torchs_interpolation_and_border() -> None:
    maps = maps_of(80, num=40)
    maps = maps[_way(maps) == IN_SPACE]
    voxels = torch.randn(len(maps), 2, *SHAPE)
    assert len(maps) > 3
    torch.testing.assert_close(resample(voxels, maps), by_torch(voxels, maps), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("shape", [(12, 12, 12), (6, 10, 14), (1, 16, 16)])
def test_outside_the_crop_values_are_from_the_crop(shape: Triple) -> None:
    maps = maps_of(30, shape)
    maps[:, :3, :3] *= 2
    voxels = torch.rand(8, 1, *shape) + 5
    views = resample(voxels, maps)
    assert views.min() > 4.999 and views.max() < 6.001


@pytest.mark.parametrize("axis", range(3))
def test_the_identity_with_a_shift_of_whole_voxels_moves_values(axis: int) -> None:
    maps = torch.eye(4, dtype=torch.float64)[None].clone()
    maps[0, axis, 3] = 2
    voxels = torch.randn(1, 3, *SHAPE)
    moved = resample(voxels, maps)
    size = SHAPE[axis]
    torch.testing.assert_close(
        moved.narrow(2 + axis, 0, size - 2), voxels.narrow(2 + axis, 2, size - 2), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        moved.narrow(2 + axis, size - 1, 1), voxels.narrow(2 + axis, size - 1, 1), atol=1e-4, rtol=0
    )


def test_labels_are_the_nearest() -> None:
    maps = maps_of(20)
    labels = torch.randint(0, 9, (8, *SHAPE), dtype=torch.int16)
    expected = by_torch(labels[:, None].float(), maps, "nearest")[:, 0].to(torch.int16)
    assert (resample_nearest(labels, maps) == expected).double().mean() > 0.999  # ties may round up or down
