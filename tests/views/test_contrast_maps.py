"""Random contrasts: the distribution of maps, what they keep of a view, and what they hide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from medcl3d.config.choices import describe
from medcl3d.config.field_types import Choice
from medcl3d.core.errors import ConfigError
from medcl3d.pretraining.pretrain import pretrain
from medcl3d.views import VIEWS
from medcl3d.views.contrast_maps import LOOKUP, RANGE, map_intensities
from tests.views.test_spatial import draws, spacings

SHAPE = (12, 14, 16)
NUM = 2000


def recipe(then: str = "none", **fields: Any) -> Any:
    return VIEWS.build(Choice("random_contrast", {"then": Choice(then), **fields}))


def knots(made: Any, num: int = NUM) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether views are mapped ``[num]``, positions and values ``[num, K]`` of their knots."""
    lookup = draws(made, num, SHAPE)[LOOKUP].numpy()
    positions, values = np.split(lookup[:, 1:], 2, axis=1)
    return lookup[:, 0], positions, values


def near(share: float, expected: float, num: int = NUM) -> bool:
    return abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / num)


def test_knots_are_uniform_and_independent() -> None:
    mapped, positions, values = knots(recipe(num_knots=3, strength=(1.0, 1.0), inversion_probability=0.3))
    assert (mapped == 1).all() and (positions[:, 0] == 0).all() and (positions[:, -1] == 1).all()
    assert stats.kstest(positions[:, 1], "uniform").pvalue > 1e-4
    columns = np.column_stack([positions[:, 1], values])
    for value in values.T:
        assert stats.kstest(value, "uniform").pvalue > 1e-4
    assert np.abs(np.corrcoef(columns.T) - np.eye(4)).max() < 5 / np.sqrt(NUM)


def test_inner_knots_are_ordered_uniform_draws() -> None:
    _, positions, _ = knots(recipe(num_knots=6))
    assert (np.diff(positions, axis=1) >= 0).all()
    for k in range(1, 5):  # the k-th of 4 uniform numbers
        assert stats.kstest(positions[:, k], stats.beta(k, 5 - k).cdf).pvalue > 1e-4


@pytest.mark.parametrize(("num_knots", "share"), [(2, 1.0), (3, 1 / 3), (4, 1 / 12)])
def test_the_share_of_monotone_maps_is_that_of_random_orders(num_knots: int, share: float) -> None:
    _, _, values = knots(recipe(num_knots=num_knots, strength=(1.0, 1.0)))
    steps = np.diff(values, axis=1)
    monotone = float(((steps > 0).all(1) | (steps < 0).all(1)).mean())
    assert monotone == 1 if share == 1 else near(monotone, share)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_the_fraction_of_inverted_maps_is_the_given_one(rate: float) -> None:
    # Values stay within 0.05 of the identity, so that a map's direction is certain.
    _, positions, values = knots(recipe(strength=(0.01, 0.05), inversion_probability=rate))
    inverted = values[:, -1] < 0.5
    assert near(float(inverted.mean()), rate) if 0 < rate < 1 else inverted.mean() == rate
    straight = np.where(inverted[:, None], 1 - values, values)
    assert np.abs(straight - positions).max() <= 0.05


def test_the_strength_is_uniform_over_its_interval() -> None:
    _, _, values = knots(recipe(num_knots=2, strength=(0.2, 0.6), inversion_probability=0.0))
    # The first knot is r * u with r and u uniform: E = 0.4 / 2, E of the square = E r^2 / 3.
    first = values[:, 0]
    second = (0.6**3 - 0.2**3) / (3 * 0.4) / 3
    assert abs(first.mean() - 0.2) < 4 * np.sqrt((second - 0.04) / NUM)
    assert abs((first**2).mean() - second) < 0.01 and first.max() <= 0.6


def test_the_fraction_of_mapped_views_is_the_given_one_and_others_keep_every_bit() -> None:
    made = recipe(probability=0.4)
    parameters = draws(made, NUM, SHAPE)
    mapped = parameters[LOOKUP][:, 0]
    assert near(float(mapped.mean()), 0.4)
    crops = torch.randn(20, 1, *SHAPE)
    views = made.apply(crops, {k: v[:20] for k, v in parameters.items()}, spacings(20)).voxels
    same = (views == crops).flatten(1).all(1)
    assert torch.equal(same, mapped[:20] == 0) and same.any() and not same.all()


def test_fields_that_do_not_change_the_map_keep_its_draws() -> None:
    one, other = (draws(recipe(probability=p), 5, SHAPE)[LOOKUP] for p in (0.0, 1.0))
    assert torch.equal(one[:, 1:], other[:, 1:]) and (one[:, 0] != other[:, 0]).all()


def test_a_map_is_the_interpolation_of_its_knots() -> None:
    made = recipe(num_knots=5)
    crops, lookup = torch.randn(4, 2, *SHAPE, dtype=torch.float64), draws(made, 4, SHAPE)[LOOKUP]
    views = map_intensities(crops, lookup)
    for crop, view, row in zip(crops.numpy(), views.numpy(), lookup.numpy(), strict=True):
        positions, values = np.split(row[1:], 2)
        for channel, found in zip(crop, view, strict=True):
            low, high = np.quantile(channel, [0.005, 0.995], method="nearest")
            x = np.clip((channel - low) / (high - low), 0, 1)
            expected = RANGE[0] + (RANGE[1] - RANGE[0]) * np.interp(x, positions, values)
            np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("num_clusters", [1, 3])
def test_equal_intensities_stay_equal_so_that_padding_is_constant(num_clusters: int) -> None:
    made = recipe(num_clusters=num_clusters)
    crops = torch.randint(-3, 4, (8, 1, *SHAPE)).float()
    crops[:, :, :5] = -3.0  # past the border of the scan
    views = made.apply(crops, draws(made, 8, SHAPE), spacings(8)).voxels
    for crop, view in zip(crops, views, strict=True):
        for value in crop.unique():
            assert len(view[crop == value].unique()) == 1
    assert (views >= RANGE[0]).all() and (views <= RANGE[1]).all()


@pytest.mark.parametrize("value", [0.0, -7.0])
def test_a_constant_view_stays_constant_and_finite(value: float) -> None:
    made = recipe(num_clusters=2)
    views = made.apply(torch.full((3, 1, *SHAPE), value), draws(made, 3, SHAPE), spacings(3)).voxels
    assert torch.isfinite(views).all() and (views == views[:, :, :1, :1, :1]).all()


def test_maps_are_continuous_within_a_cluster_and_jump_between_clusters() -> None:
    x = torch.linspace(0, 1, 20_001, dtype=torch.float64).view(1, 1, 1, 1, -1)
    for num_clusters in (1, 4):
        lookup = draws(recipe(num_clusters=num_clusters, num_knots=2), 50, SHAPE)[LOOKUP]
        steps = map_intensities(x.expand(50, -1, -1, -1, -1), lookup).flatten(1).diff(dim=1).abs()
        # A small jump is missed, and a narrow cluster looks like several; both are rare.
        assert (steps > 0.05).sum(1).median() == num_clusters - 1


@pytest.mark.parametrize("then", ["none", "shape", "mri", "ct"])
def test_geometry_and_labels_are_those_of_the_other_recipe(then: str) -> None:
    made, other = recipe(then), VIEWS.build(Choice(then))
    parameters, crops = draws(made, 6, SHAPE), torch.randn(6, 1, *SHAPE)
    alone = draws(other, 6, SHAPE)
    assert all(torch.equal(parameters[name], alone[name]) for name in alone)
    labels = torch.randint(0, 4, (6, *SHAPE), dtype=torch.int16)
    view, expected = (
        one.apply(crops, given, spacings(6), labels) for one, given in ((made, parameters), (other, alone))
    )
    assert torch.equal(view.voxel_map, expected.voxel_map) and torch.equal(view.labels, expected.labels)
    assert not torch.equal(view.voxels, expected.voxels)
    torch.testing.assert_close(view.voxel_map, made.voxel_map(parameters, SHAPE, spacings(6)))


def test_a_view_is_the_same_alone_and_in_any_batch_and_the_crop_is_kept() -> None:
    made = recipe("mri")
    parameters, crops = draws(made, 6, SHAPE), torch.randn(6, 2, *SHAPE)
    before = crops.clone()
    whole = made.apply(crops, parameters, spacings(6)).voxels
    assert torch.equal(crops, before)
    for i in range(6):
        alone = made.apply(
            crops[i : i + 1], {k: v[i : i + 1] for k, v in parameters.items()}, spacings(1)
        ).voxels
        torch.testing.assert_close(alone[0], whole[i], atol=1e-5, rtol=1e-5)


def test_intensities_of_two_views_are_uncorrelated_where_those_of_mri_are_not() -> None:
    """The purpose: two views of one crop share no intensity, only the arrangement of equal intensities."""
    crops = torch.rand(1, 1, *SHAPE).expand(200, -1, -1, -1, -1)

    def correlation(made: Any) -> float:
        views = made.apply(crops, draws(made, 200, SHAPE), spacings(200)).voxels.flatten(1)
        pairs = [np.corrcoef(views[i], views[i + 1])[0, 1] for i in range(0, 200, 2)]
        return float(np.mean(pairs))

    contrast = recipe(strength=(1.0, 1.0))
    assert abs(correlation(contrast)) < 0.15
    still = {"flip_probability": (0.0, 0.0, 0.0), "affine_probability": 0.0, "noise_probability": 0.0}
    assert correlation(VIEWS.build(Choice("mri", still))) > 0.8


def test_every_field_is_documented_and_wrong_ones_are_refused() -> None:
    documented = VIEWS.get("random_contrast").__doc__ or ""
    assert [f.name for f in describe(VIEWS, "random_contrast") if f.name not in documented] == []
    for fields in ({"num_knots": 1}, {"strength": (0.5, 1.5)}, {"then": Choice("mrii")}, {"num_clusters": 0}):
        with pytest.raises(ConfigError, match=next(iter(fields))):
            VIEWS.build(Choice("random_contrast", fields))


@pytest.mark.parametrize("strategy", ["augmented_views", "voxel_correspondence"])
def test_it_trains_with_strategies_of_views_and_points(
    strategy: str, tiny_store: Path, tmp_path: Path
) -> None:
    config = {
        "data": {"root": str(tiny_store), "patch_size": [16, 16, 16]},
        "pairs": strategy,
        "views": {"random_contrast": {"then": "shape", "num_clusters": 2}},
        "encoder": {"unet3d": {"channels": [4, 8], "strides": [1, 2]}},
        "objective": "global_dense",
        "train": {"steps": 4, "samples_per_step": 4, "log_every": 1},
        "out_dir": str(tmp_path / "run"),
    }
    (tmp_path / "a.yaml").write_text(json.dumps(config))
    run = pretrain(tmp_path / "a.yaml")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 4 and np.isfinite(losses).all()
