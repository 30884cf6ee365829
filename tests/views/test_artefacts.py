"""TorchIO's transforms as a view recipe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medcl3d.config.field_types import Choice
from medcl3d.config.loading import parse
from medcl3d.core.errors import ConfigError
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.views import VIEWS

TRANSFORMS = (
    {"RandomMotion": {"p": 1, "degrees": [3, 6]}},
    {"RandomBiasField": {}},
    {"RandomGhosting": {}},
    {"RandomSpike": {}},
)
SHAPE = (12, 14, 16)


def recipe(*transforms: dict[str, Any], first: str = "none") -> Any:
    return VIEWS.build(Choice("torchio", {"transforms": transforms or TRANSFORMS, "first": Choice(first)}))


def draws(made: Any, num: int) -> dict[str, torch.Tensor]:
    drawn = [made.draw(np.random.default_rng(i), SHAPE) for i in range(num)]
    return {name: torch.stack([torch.as_tensor(one[name]) for one in drawn]) for name in drawn[0]}


def test_a_view_is_the_same_in_any_batch_and_does_not_change_other_draws() -> None:
    voxels, made = torch.randn(3, 1, *SHAPE, generator=torch.Generator().manual_seed(0)), recipe()
    parameters, spacing = draws(made, 3), torch.ones(3, 3)
    torch.manual_seed(5)
    together = made.apply(voxels, parameters, spacing).voxels
    after = torch.rand(())
    torch.manual_seed(5)
    assert after == torch.rand(())
    single = made.apply(
        voxels[1:2], {name: value[1:2] for name, value in parameters.items()}, spacing[1:2]
    ).voxels
    assert torch.equal(together[1:2], single) and not torch.allclose(together, voxels, atol=0.1)
    assert together.shape == voxels.shape and together.isfinite().all()


def test_the_first_recipe_moves_voxels_and_its_map_is_recorded() -> None:
    voxels, made = torch.randn(4, 1, *SHAPE), recipe({"RandomNoise": {"std": [0, 1e-9]}}, first="shape")
    parameters, spacing = draws(made, 4), torch.ones(4, 3)
    view = made.apply(voxels, parameters, spacing)
    plain = VIEWS.build(Choice("shape")).apply(
        voxels, {k: v for k, v in parameters.items() if k != "torchio_seed"}, spacing
    )
    torch.testing.assert_close(view.voxels, plain.voxels, atol=1e-6, rtol=0)
    assert torch.equal(view.voxel_map, made.voxel_map(parameters, SHAPE, spacing)) and torch.equal(
        view.voxel_map, plain.voxel_map
    )


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ([{"RandomAffine": {}}], "transform RandomAffine moves voxels"),
        ([{"RandomSwap": {}}], "transform RandomSwap moves voxels"),
        ([{"RandomFoo": {}}], "transform RandomFoo is unknown to TorchIO; there are RandomBiasField"),
        ([{"RandomMotion": {"degree": 3}}], "transform RandomMotion: error of TorchIO.*degree"),
        ([{"ZNormalization": {}}], "transform ZNormalization"),
        ([], "at least one transform"),
    ],
)
def test_a_wrong_transform_is_a_one_line_error(transforms: list[Any], message: str) -> None:
    config = {
        "data": {"root": "data"},
        "pairs": "overlapping_crops",
        "views": {"torchio": {"transforms": transforms}},
        "encoder": "resnet3d",
        "objective": "simclr",
        "train": {"steps": 1, "samples_per_step": 2},
        "out_dir": "unused",
    }
    with pytest.raises(ConfigError, match=message) as caught:
        parse(config, PretrainConfig, "a.yaml")
    assert "views.torchio.transforms" in str(caught.value) and "\n" not in str(caught.value)
