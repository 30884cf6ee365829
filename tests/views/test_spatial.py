"""Spatial augmentations: landmarks follow the map, flips are exact, neutral parameters change nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medcl3d.core.geometry import Triple
from medcl3d.views.recipes import Recipe
from medcl3d.views.spatial import Spatial, named, voxel_map

SHAPE = (24, 28, 32)
SPACING = (0.8, 1.0, 2.5)


def draws(recipe: Recipe, num: int, shape: Triple, seed: int = 0) -> dict[str, torch.Tensor]:
    each = [recipe.draw(np.random.default_rng([seed, i]), shape) for i in range(num)]
    return {name: torch.stack([torch.as_tensor(one[name]) for one in each]) for name in each[0]}


def spacings(num: int, spacing: tuple[float, ...] = SPACING) -> torch.Tensor:
    return torch.tensor([spacing] * num, dtype=torch.float64)


def blob(at: np.ndarray, shape: Triple, width: float = 1.5) -> torch.Tensor:
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    return torch.from_numpy(np.exp(-0.5 * ((index - at) ** 2).sum(-1) / width**2)).float()


def center_of_mass(volume: torch.Tensor) -> np.ndarray:
    weight = volume.double().numpy() ** 2
    grid = np.meshgrid(*(np.arange(n) for n in volume.shape), indexing="ij")
    return np.array([(axis * weight).sum() for axis in grid]) / weight.sum()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    spacing=st.tuples(*(st.floats(0.5, 2.0) for _ in range(3))),
    at=st.tuples(st.floats(10, 13), st.floats(12, 15), st.floats(14, 17)),
)
def test_a_landmark_is_at_the_position_of_the_map(
    seed: int, spacing: tuple[float, ...], at: tuple[float, ...]
) -> None:
    recipe = Recipe(
        Spatial(
            affine_probability=1,
            rotation_degrees=40,
            scale=(0.8, 1.25),
            scale_each_axis=True,
            shear_degrees=10,
            translation_mm=2,
        )
    )
    parameters = draws(recipe, 1, SHAPE, seed)
    result = recipe.apply(blob(np.array(at), SHAPE)[None, None], parameters, spacings(1, spacing))
    expected = torch.linalg.inv(result.voxel_map[0]).numpy() @ [*at, 1]
    np.testing.assert_allclose(center_of_mass(result.voxels[0, 0]), expected[:3], atol=0.25)


def test_a_rotation_keeps_distances_in_mm_on_anisotropic_spacing() -> None:
    recipe = Recipe(Spatial(affine_probability=1, rotation_degrees=60, scale=(1, 1)))
    maps = recipe.voxel_map(draws(recipe, 20, SHAPE), SHAPE, spacings(20))
    size = torch.tensor(SPACING, dtype=torch.float64)
    in_mm = maps[:, :3, :3] * size[:, None] / size
    torch.testing.assert_close(
        in_mm @ in_mm.transpose(1, 2), torch.eye(3, dtype=torch.float64).expand(20, 3, 3)
    )
    center = torch.tensor([(n - 1) / 2 for n in SHAPE] + [1], dtype=torch.float64)
    torch.testing.assert_close(maps @ center, center.expand(20, 4))


@pytest.mark.parametrize("axis", range(3))
def test_a_positive_angle_rotates_the_next_axis_towards_the_one_after(axis: int) -> None:
    parameters = torch.tensor([[[0.0] * 3, [0.0] * 3, [1.0] * 3, [0.0] * 3, [0.0] * 3]], dtype=torch.float64)
    parameters[0, 1, axis] = 90
    to_crop = voxel_map({"spatial": parameters}, (9, 9, 9), torch.ones(1, 3))[0, :3, :3]
    start, end = torch.eye(3, dtype=torch.float64)[[(axis + 1) % 3, (axis + 2) % 3]]
    torch.testing.assert_close(torch.linalg.inv(to_crop) @ start, end)


def test_scale_above_one_makes_the_anatomy_larger_and_translation_moves_it_in_mm() -> None:
    recipe = Recipe(
        Spatial(flip_probability=(0, 0, 0), affine_probability=1, rotation_degrees=0, scale=(1.25, 1.25))
    )
    parameters = draws(recipe, 1, SHAPE)
    assert torch.allclose(
        recipe.voxel_map(parameters, SHAPE, spacings(1))[0, :3, :3].diagonal(),
        torch.tensor(0.8, dtype=torch.float64),
    )
    parameters["spatial"][:, 2] = 1
    parameters["spatial"][:, 4] = torch.tensor([1.6, 0, 5.0])
    image = torch.zeros(1, 1, *SHAPE)
    image[0, 0, 10, 10, 10] = 1
    moved = recipe.apply(image, parameters, spacings(1)).voxels
    assert moved[0, 0, 12, 10, 12] == pytest.approx(1, abs=1e-4)


def test_flips_are_exact_and_in_the_map() -> None:
    recipe = Recipe(Spatial(affine_probability=0))
    parameters = draws(recipe, 40, SHAPE)
    crops = torch.randn(40, 2, *SHAPE)
    labels = torch.randint(0, 5, (40, *SHAPE), dtype=torch.int16)
    result = recipe.apply(crops, parameters, spacings(40), labels)
    assert len(named(parameters)["flip"].unique(dim=0)) == 8
    for i in range(40):
        axes = [1 + int(axis) for axis in named(parameters)["flip"][i].nonzero()]
        assert torch.equal(result.voxels[i], crops[i].flip(axes))
        assert result.labels is not None and torch.equal(
            result.labels[i], labels[i].flip([axis - 1 for axis in axes])
        )
        corner = result.voxel_map[i] @ torch.tensor([0.0, 0, 0, 1], dtype=torch.float64)
        assert corner[:3].tolist() == [
            (n - 1) * float(f) for n, f in zip(SHAPE, named(parameters)["flip"][i], strict=True)
        ]


def test_neutral_parameters_keep_every_bit_and_crops_are_unchanged() -> None:
    recipe = Recipe(Spatial(flip_probability=(0, 0, 0), affine_probability=0.5, translation_mm=3))
    parameters = draws(recipe, 20, SHAPE)
    still = (named(parameters)["scale"] == 1).all(1)
    crops = torch.randn(20, 1, *SHAPE)
    before = crops.clone()
    result = recipe.apply(crops, parameters, spacings(20))
    assert torch.equal(crops, before)
    assert 0 < still.sum() < 20
    assert torch.equal(result.voxels[still], crops[still])
    assert torch.equal(
        result.voxel_map[still], torch.eye(4, dtype=torch.float64).expand(int(still.sum()), 4, 4)
    )
    assert all(not torch.equal(a, b) for a, b in zip(result.voxels[~still], crops[~still], strict=True))


def test_labels_move_with_the_voxels_and_stay_whole_numbers() -> None:
    recipe = Recipe(Spatial(affine_probability=1, rotation_degrees=30))
    labels = (blob(np.array([12.0, 14, 16]), SHAPE, 5) > 0.5)[None].repeat(8, 1, 1, 1).to(torch.int16) * 7
    result = recipe.apply(labels[:, None].float(), draws(recipe, 8, SHAPE), spacings(8), labels)
    assert result.labels is not None and result.labels.dtype == torch.int16
    assert set(result.labels.unique().tolist()) == {0, 7}
    assert ((result.voxels[:, 0] > 3.5) == (result.labels == 7)).double().mean() > 0.99


@pytest.mark.parametrize("shape", [(1, 32, 32), (32, 8, 32)])
def test_a_slab_is_rotated_in_its_plane_only(shape: Triple) -> None:
    recipe = Recipe(Spatial(affine_probability=1, shear_degrees=10, translation_mm=5, scale_each_axis=True))
    maps = recipe.voxel_map(draws(recipe, 10, shape), shape, spacings(10))[:, :3, :3]
    thin = int(np.argmin(shape))
    others = [axis for axis in range(3) if axis != thin]
    assert (
        (maps[:, thin, others] == 0).all()
        and (maps[:, others, thin] == 0).all()
        and (maps[:, thin, thin].abs() == 1).all()
    )
    assert (maps[:, others[0], others[1]] != 0).all()
