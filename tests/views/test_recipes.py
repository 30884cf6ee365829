"""View recipes: a view depends on its own parameters only, and fields are validated."""

import numpy as np
import pytest
import torch

from medcl3d.config.choices import describe
from medcl3d.config.field_types import Choice
from medcl3d.core.errors import ConfigError
from medcl3d.views import VIEWS
from medcl3d.views.intensity import NAMES, named
from tests.views.test_spatial import draws

SHAPE = (16, 18, 20)
STRONG = {
    "affine_probability": 0.7,
    "blur_probability": 0.5,
    "low_resolution_probability": 0.5,
    "noise_probability": 0.5,
    "cutout_probability": 0.5,
}


def recipe_of(name: str):
    return VIEWS.build(Choice(name, STRONG if name in ("mri", "ct") else {}))


@pytest.mark.parametrize("name", ["mri", "ct", "shape", "none"])
def test_a_view_is_the_same_alone_and_in_any_batch(name: str) -> None:
    recipe = recipe_of(name)
    parameters = draws(recipe, 12, SHAPE)
    crops = torch.randn(12, 2, *SHAPE)
    spacing = torch.rand(12, 3, dtype=torch.float64) + 0.5
    labels = torch.randint(0, 4, (12, *SHAPE), dtype=torch.int16)
    whole = recipe.apply(crops, parameters, spacing, labels)
    order = torch.randperm(12)
    shuffled = recipe.apply(
        crops[order], {k: v[order] for k, v in parameters.items()}, spacing[order], labels[order]
    )
    torch.testing.assert_close(shuffled.voxels, whole.voxels[order], atol=1e-5, rtol=1e-5)
    for i in range(12):
        single = recipe.apply(
            crops[i : i + 1],
            {k: v[i : i + 1] for k, v in parameters.items()},
            spacing[i : i + 1],
            labels[i : i + 1],
        )
        torch.testing.assert_close(single.voxels[0], whole.voxels[i], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(single.voxel_map[0], whole.voxel_map[i])
        assert torch.equal(single.labels[0], whole.labels[i])
    torch.testing.assert_close(whole.voxel_map, recipe.voxel_map(parameters, SHAPE, spacing))
    assert torch.isfinite(whole.voxels).all() and whole.voxels.dtype == torch.float32


def test_equal_generators_draw_equal_views_and_others_differ() -> None:
    recipe = recipe_of("mri")
    one, again, other = (recipe.draw(np.random.default_rng(seed), SHAPE) for seed in (5, 5, 6))
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[key], again[key]) and one[key].shape == other[key].shape for key in one)
    assert one["seed"] != other["seed"] and np.asarray(one["seed"]).dtype == np.int64


def test_one_probability_does_not_change_the_other_draws() -> None:
    some, more = (
        VIEWS.build(Choice("mri", {"blur_probability": p})).draw(np.random.default_rng(3), SHAPE)
        for p in (0.0, 1.0)
    )
    assert np.flatnonzero(some["intensity"] != more["intensity"]).tolist() == [NAMES.index("blur_sigma")]
    assert np.array_equal(some["spatial"], more["spatial"]) and some["seed"] == more["seed"]


def test_none_is_a_copy_of_the_crop() -> None:
    recipe = recipe_of("none")
    crops = torch.randn(3, 1, *SHAPE)
    result = recipe.apply(crops, draws(recipe, 3, SHAPE), torch.ones(3, 3))
    assert torch.equal(result.voxels, crops) and result.voxels.data_ptr() != crops.data_ptr()
    assert torch.equal(result.voxel_map, torch.eye(4, dtype=torch.float64).expand(3, 4, 4))


def test_ct_never_draws_a_gamma_and_shape_no_intensities() -> None:
    assert (named(draws(recipe_of("ct"), 50, SHAPE))["gamma"] == 1).all()
    recipe = recipe_of("shape")
    mask = (torch.rand(20, 1, *SHAPE) > 0.5) * 255.0
    views = recipe.apply(mask, draws(recipe, 20, SHAPE), torch.ones(20, 3)).voxels
    assert views.min() >= 0 and views.max() <= 255.001


@pytest.mark.parametrize("name", ["mri", "ct", "shape"])
def test_every_field_has_a_valid_default_and_is_documented(name: str) -> None:
    fields = describe(VIEWS, name)
    assert {f.name for f in fields} <= {f.name for f in describe(VIEWS, "mri")}
    parsed = VIEWS.schema(name).validate_json("{}")
    VIEWS.build(Choice(name, {f.name: getattr(parsed, f.name) for f in fields}))
    documented = VIEWS.get("mri").__doc__ or ""
    assert [f.name for f in fields if f.name not in documented] == []


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("scale", "[1.25, 0.8]", "lower end"),
        ("scale", "[0, 1]", "greater than 0"),
        ("gamma", "[0.7]", "item is missing"),
        ("cutout_size", "[0.1, 1.5]", "at most 1"),
        ("flip_probability", "[0.5, 0.5, 2]", "less than or equal to 1"),
        ("rotation_degrees", "-3", "greater than or equal to 0"),
        ("rotaton_degrees", "3", "did you mean"),
        ("blur_unit", "mn", "voxel"),
    ],
)
def test_a_wrong_field_is_an_error_with_its_name(tmp_path, field: str, value: str, message: str) -> None:
    from pydantic.dataclasses import dataclass

    from medcl3d.config.choices import choice_of
    from medcl3d.config.field_types import STRICT
    from medcl3d.config.loading import load

    @dataclass(frozen=True, config=STRICT)
    class Model:
        views: choice_of(VIEWS)  # type: ignore[valid-type]

    (tmp_path / "a.yaml").write_text(f"views:\n  mri:\n    {field}: {value}\n")
    with pytest.raises(ConfigError, match=message) as raised:
        load(tmp_path / "a.yaml", [], Model)
    assert field in str(raised.value) and "a.yaml:3" in str(raised.value)
