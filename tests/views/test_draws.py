"""Distributions of recipes' parameters: documented ranges and probabilities, symmetry, independence.

Other view tests compare a view with its drawn parameters, so they do not detect a wrong draw.
Seeds are fixed; thresholds are such that a right distribution fails about once in a thousand seeds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from medcl3d.config.choices import describe
from medcl3d.config.field_types import Choice
from medcl3d.views import VIEWS
from medcl3d.views.intensity import Intensity, named
from medcl3d.views.recipes import Recipe
from medcl3d.views.spatial import Spatial
from medcl3d.views.spatial import named as placed

NUM = 2000
SHAPE = (24, 28, 32)
BRIGHTNESS = 0.8
SPATIAL = {
    "rotation_degrees": 25.0,
    "scale": (0.6, 1.5),
    "scale_each_axis": True,
    "shear_degrees": 12.0,
    "translation_mm": 7.0,
}
INTENSITY = {
    "blur_sigma": (0.3, 1.7),
    "low_resolution": (0.2, 0.9),
    "noise_std": 0.45,
    "contrast": (0.5, 1.6),
    "brightness": BRIGHTNESS,
    "gamma": (0.4, 2.5),
    "cutout_size": (0.15, 0.6),
}
PROBABILITIES = {
    "blur_probability": 0.15,
    "low_resolution_probability": 0.25,
    "noise_probability": 0.35,
    "contrast_probability": 0.45,
    "brightness_probability": 0.55,
    "gamma_probability": 0.65,
    "cutout_probability": 0.75,
    "affine_probability": 0.85,
}
CHANGE_OF = {
    **dict.fromkeys(("rotation_degrees", "scale", "shear_degrees", "translation_mm"), "affine"),
    **{name: name for name in ("low_resolution", "contrast", "brightness", "gamma")},
    **{"blur_sigma": "blur", "noise_std": "noise", "cutout_size": "cutout", "cutout_corner": "cutout"},
}
ALWAYS = dict.fromkeys(PROBABILITIES, 1.0)


def recipe_of(name: str, fields: dict[str, Any]) -> Any:
    """A recipe with the fields that it accepts."""
    if name == "torchio":
        return VIEWS.build(
            Choice("torchio", {"transforms": ({"RandomNoise": {}},), "first": Choice("mri", fields)})
        )
    known = {field.name for field in describe(VIEWS, name)}
    return VIEWS.build(Choice(name, {field: value for field, value in fields.items() if field in known}))


def drawn(recipe: Any, seed: int = 0) -> dict[str, np.ndarray]:
    """``NUM`` draws by name, each from its view's generator."""
    each = [recipe.draw(np.random.default_rng([seed, i]), SHAPE) for i in range(NUM)]
    stacked = {key: torch.stack([torch.as_tensor(one[key]) for one in each]) for key in each[0]}
    found: dict[str, torch.Tensor] = {}
    if "spatial" in stacked:
        found |= placed(stacked)
    if "intensity" in stacked:
        found |= named(stacked)
    return {key: value.numpy() for key, value in found.items()}


def uniform_shares(p: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Map each parameter by its documented distribution function, which makes it uniform in [0, 1]."""

    def logarithmic(name: str, interval: Any) -> np.ndarray:
        return np.log(p[name] / interval[0]) / np.log(interval[1] / interval[0])

    def straight(name: str, interval: Any) -> np.ndarray:
        return (p[name] - interval[0]) / (interval[1] - interval[0])

    shares: dict[str, np.ndarray] = {}
    if "scale" in p:
        shares["scale"] = logarithmic("scale", SPATIAL["scale"])
        for name in ("rotation_degrees", "shear_degrees", "translation_mm"):
            shares[name] = straight(name, (-SPATIAL[name], SPATIAL[name]))  # type: ignore[operator]
    if "contrast" in p:
        shares |= {name: logarithmic(name, INTENSITY[name]) for name in ("low_resolution", "contrast")}
        if (p["gamma"] != 1).any():
            shares["gamma"] = logarithmic("gamma", INTENSITY["gamma"])
        shares["blur_sigma"] = straight("blur_sigma", INTENSITY["blur_sigma"])
        shares["noise_std"] = straight("noise_std", (0, INTENSITY["noise_std"]))
        shares["brightness"] = straight("brightness", (-BRIGHTNESS, BRIGHTNESS))
        shares["cutout_size"] = straight("cutout_size", INTENSITY["cutout_size"])
        shares["cutout_corner"] = p["cutout_corner"] / (1 - p["cutout_size"])
    columns = {name: value.reshape(NUM, -1) for name, value in shares.items()}
    return {f"{name} {k}": value[:, k] for name, value in columns.items() for k in range(value.shape[1])}


def happened(p: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Whether each augmentation occurs, by the name of its probability."""
    found = {"affine_probability": p["rotation_degrees"][:, 0] != 0} if "scale" in p else {}
    if "contrast" in p:
        found |= {
            "blur_probability": p["blur_sigma"] != 0,
            "low_resolution_probability": p["low_resolution"] != 1,
            "noise_probability": p["noise_std"] != 0,
            "contrast_probability": p["contrast"] != 1,
            "brightness_probability": p["brightness"] != 0,
            "gamma_probability": p["gamma"] != 1,
            "cutout_probability": p["cutout_size"][:, 0] != 0,
        }
    return found


def correlations(columns: dict[str, np.ndarray]) -> float:
    """The largest correlation of two columns."""
    return float(
        np.abs(np.corrcoef(np.stack(list(columns.values())).astype(float)) - np.eye(len(columns))).max()
    )


RECIPES = ["mri", "ct", "shape", "torchio"]


@pytest.mark.parametrize("name", RECIPES)
def test_every_parameter_has_its_documented_range_and_distribution_and_is_independent(
    name: str,
) -> None:
    shares = uniform_shares(drawn(recipe_of(name, SPATIAL | INTENSITY | ALWAYS)))
    assert len(shares) == {"mri": 24, "torchio": 24, "ct": 23, "shape": 12}[name]
    for column, share in shares.items():
        assert share.min() >= -1e-12 and share.max() <= 1 + 1e-12, column
        assert stats.kstest(share, "uniform").pvalue > 1e-4, column
    assert correlations(shares) < 5 / np.sqrt(NUM)
    assert correlations({column: np.abs(share - 0.5) for column, share in shares.items()}) < 5 / np.sqrt(NUM)


@pytest.mark.parametrize("name", RECIPES)
def test_every_augmentation_has_its_own_independent_probability(name: str) -> None:
    p = drawn(recipe_of(name, SPATIAL | INTENSITY | PROBABILITIES), seed=1)
    changes = happened(p)
    if name == "ct":
        assert not changes.pop("gamma_probability").any()
    for probability, changed in changes.items():
        expected = PROBABILITIES[probability]
        assert abs(changed.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / NUM), probability
    if len(changes) > 1:
        assert correlations(changes) < 5 / np.sqrt(NUM)
    for column, share in uniform_shares(p).items():
        changed = changes[f"{CHANGE_OF[column.split()[0]]}_probability"]
        assert stats.kstest(share[changed], "uniform").pvalue > 1e-4, f"{column} depends on whether it occurs"


@pytest.mark.parametrize("name", RECIPES)
def test_flips_have_a_probability_for_each_axis_and_are_independent(name: str) -> None:
    expected = np.array([0.1, 0.5, 0.8])
    flips = drawn(recipe_of(name, {"flip_probability": tuple(expected)} | ALWAYS))["flip"]
    assert set(np.unique(flips)) == {0.0, 1.0}
    assert (np.abs(flips.mean(0) - expected) < 4 * np.sqrt(expected * (1 - expected) / NUM)).all()
    assert correlations(dict(enumerate(flips.T))) < 5 / np.sqrt(NUM)  # type: ignore[arg-type]


def test_one_scale_for_all_axes_unless_each_has_its_own() -> None:
    scale = drawn(Recipe(Spatial(affine_probability=1, scale=(0.5, 2.0))))["scale"]
    assert (scale == scale[:, :1]).all()
    assert stats.kstest(np.log2(scale[:, 0]) / 2 + 0.5, "uniform").pvalue > 1e-4


def test_the_fraction_of_inverted_gammas_is_the_given_one() -> None:
    p = drawn(Recipe(intensity=Intensity(gamma_probability=0.5, gamma_inverted=0.3)))
    inverted, drawn_gamma = p["gamma_inverted"] == 1, p["gamma"] != 1
    assert set(np.unique(p["gamma_inverted"])) == {0.0, 1.0}
    num = drawn_gamma.sum()
    assert abs(inverted[drawn_gamma].mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / num)
    assert (
        stats.ks_2samp(p["gamma"][drawn_gamma & inverted], p["gamma"][drawn_gamma & ~inverted]).pvalue > 1e-4
    )


class Coarse:
    """A generator that draws the lowest possible number, or 0.75, with equal probability."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def random(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.rng.choice([0.0, 0.75], shape)

    def integers(self, _stop: int) -> int:
        return 0


def test_probability_0_means_never_even_for_the_lowest_draw() -> None:
    never = dict.fromkeys(PROBABILITIES, 0.0) | {"flip_probability": (0.0, 0.0, 0.0), "gamma_inverted": 0.0}
    recipe = recipe_of("mri", SPATIAL | INTENSITY | never)
    for seed in range(50):
        p = recipe.draw(Coarse(seed), SHAPE)
        assert p["spatial"].tolist() == [[0, 0, 0], [0, 0, 0], [1, 1, 1], [0, 0, 0], [0, 0, 0]]
        assert p["intensity"].tolist() == [1, 1, 1] + [0] * 10


def test_every_view_has_its_own_int64_seed() -> None:
    for recipe, key in ((Recipe(intensity=Intensity()), "seed"), (recipe_of("torchio", {}), "torchio_seed")):
        seeds = [int(recipe.draw(np.random.default_rng([2, i]), SHAPE)[key]) for i in range(NUM)]
        assert len(set(seeds)) == NUM and min(seeds) >= 0 and max(seeds) < 2**63
        assert stats.kstest(np.array(seeds) / 2.0**62, "uniform").pvalue > 1e-4


def test_torchio_draws_what_its_first_recipe_draws_and_none_draws_nothing() -> None:
    fields = SPATIAL | INTENSITY | PROBABILITIES
    without_torchio, first = recipe_of("mri", fields), recipe_of("torchio", fields)
    for i in range(20):
        one, other = (recipe.draw(np.random.default_rng(i), SHAPE) for recipe in (without_torchio, first))
        assert all(np.array_equal(one[key], other[key]) for key in one)
    assert {
        key: value.item()
        for key, value in recipe_of("none", {}).draw(np.random.default_rng(0), SHAPE).items()
    } == {"seed": 0}


def test_torchios_probability_holds_over_the_seeds_of_views() -> None:
    recipe = VIEWS.build(
        Choice(
            "torchio", {"transforms": ({"RandomNoise": {"std": [1, 1], "p": 0.4}},), "first": Choice("none")}
        )
    )
    num, shape = 100, (4, 4, 4)
    each = [recipe.draw(np.random.default_rng([3, i]), shape) for i in range(num)]
    parameters = {key: torch.stack([torch.as_tensor(one[key]) for one in each]) for key in each[0]}
    views = recipe.apply(torch.zeros(num, 1, *shape), parameters, torch.ones(num, 3)).voxels
    changed = (views != 0).flatten(1).any(1).double().mean()
    assert abs(float(changed) - 0.4) < 4 * np.sqrt(0.4 * 0.6 / num)


def test_the_defaults_of_mri_are_those_of_its_parts() -> None:
    assert VIEWS.build(Choice("mri")) == Recipe(Spatial(), Intensity())
