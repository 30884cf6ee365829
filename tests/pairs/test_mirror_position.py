"""Repulsion of the contralateral place: formula, symmetry, the plane itself, and what it teaches."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medcl3d.config.loading import parse
from medcl3d.core.collection import Collection
from medcl3d.core.errors import ConfigError
from medcl3d.core.keys import Keys
from medcl3d.pairs.mirror_position import MirrorPosition
from medcl3d.pairs.voxel_correspondence import VoxelCorrespondence
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.parts import assemble
from tests.pairs.collections import collections, make_collection
from tests.pairs.test_body_position import points_in
from tests.pairs.test_strategies import batch_of_views


def points(seed: int) -> Keys:
    collection = make_collection(seed % 20, 6)
    return points_in(collection, batch_of_views(MirrorPosition(), collection, seed), seed)


def at(body: list[list[float]]) -> Keys:
    """Points of several patients at given places, far apart in the world."""
    keys = points(0)[: len(body)]
    number = torch.arange(len(body))
    place = torch.tensor(body, dtype=torch.float64)
    return dataclasses.replace(
        keys, body=place, sample=number, scan=number, frame=number, patient=number, point=number,
        position_mm=place,
    )  # fmt: skip


@given(collection=collections, seed=st.integers(0, 1000), beta=st.floats(0, 9), sigma=st.floats(1, 60))
def test_repulsion_follows_the_distance_from_the_mirror_image(
    collection: Collection, seed: int, beta: float, sigma: float
) -> None:
    strategy, inner = MirrorPosition(beta=beta, sigma_mm=sigma), VoxelCorrespondence()
    views = batch_of_views(strategy, collection, seed)
    for keys in (views, points_in(collection, views, seed)):
        found, known = strategy.relate(keys, keys, None), inner.relate(keys, keys, None)
        assert torch.equal(found.positive, known.positive)
        body = keys.body.numpy()
        for i, j in np.random.default_rng(seed).integers(0, len(keys), (40, 2)):
            d = np.linalg.norm(body[i] - body[j])
            m = np.linalg.norm(body[i] - body[j] * [-1, 1, 1])
            k = np.exp(-(m**2) / (2 * sigma**2)) * (1 - np.exp(-(d**2) / (2 * sigma**2)))
            assert float(found.negative[i, j]) == pytest.approx(
                float(known.negative[i, j]) * (1 + beta * k), rel=1e-5
            )
        torch.testing.assert_close(found.negative, found.negative.T)


def test_the_mirror_image_repels_most_and_the_plane_and_other_places_as_usual() -> None:
    keys = at([[40, 10, 5], [-40, 10, 5], [-40, 10, 80], [0.5, 0, 0], [-0.5, 0, 0]])
    negative = MirrorPosition(beta=3.0, sigma_mm=5.0).relate(keys, keys, None).negative
    assert negative[0, 1] == pytest.approx(4.0) and negative[0, 2] == pytest.approx(1.0)
    assert negative[3, 4] == pytest.approx(1.0, abs=0.1), "near the plane an item is its own mirror image"


@given(seed=st.integers(0, 1000))
def test_without_beta_it_is_voxel_correspondence(seed: int) -> None:
    keys = points(seed)
    found = MirrorPosition(beta=0.0).relate(keys, keys, None)
    known = VoxelCorrespondence().relate(keys, keys, None)
    assert torch.equal(found.positive, known.positive) and torch.equal(found.negative, known.negative)


def test_points_that_are_ignored_stay_ignored() -> None:
    keys = points(4)
    known = VoxelCorrespondence(ignore_mm=20.0).relate(keys, keys, None)
    found = MirrorPosition(ignore_mm=20.0, sigma_mm=80.0).relate(keys, keys, None)
    ignored = (known.positive == 0) & (known.negative == 0)
    assert ignored.sum() > len(keys) and (found.negative[ignored] == 0).all()


def test_descent_separates_mirror_images_more_than_other_negatives() -> None:
    """The purpose: the gradient of the loss pushes the mirrored place away beta times as strongly."""
    from medcl3d.losses.contrastive_loss import ContrastiveLoss

    keys = at([[40, 0, 0], [40, 0, 0], [-40, 0, 0], [40, 60, 0]])
    strategy = MirrorPosition(beta=4.0, sigma_mm=5.0)
    relation = strategy.relate(keys, keys, None)
    positive = torch.zeros(4, 4)
    positive[0, 1] = positive[1, 0] = 1
    z = torch.eye(4, dtype=torch.float64).add(0.1).requires_grad_()
    ContrastiveLoss()(z, positive, relation.negative * (positive == 0)).backward()
    pushed = z.grad[0]
    assert pushed[2] > 3 * pushed[3] > 0


@pytest.mark.parametrize(
    ("views", "named"),
    [
        ("mri", "views.mri"),
        ({"random_contrast": {"then": "ct"}}, "views.random_contrast"),
        ({"torchio": {"transforms": [{"RandomGamma": {}}], "first": "shape"}}, "views.torchio"),
    ],
)
def test_views_that_flip_left_and_right_are_refused(
    views: object, named: str, tiny_store: Path, tmp_path: Path
) -> None:
    given = {
        "data": {"root": str(tiny_store), "patch_size": [16, 16, 16]},
        "pairs": {"exclude": {"inner": "mirror_position", "by": "patient"}},
        "views": views,
        "encoder": {"unet3d": {"channels": [4, 8], "strides": [1, 2]}},
        "objective": "dense",
        "train": {"steps": 2, "samples_per_step": 4},
        "out_dir": str(tmp_path),
    }
    message = (
        f"{named}: flip_probability = [0.5, 0.5, 0.5] flips left and right, which pairs.exclude "
        "distinguishes; set flip_probability to [0, 0.5, 0.5]"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        assemble(parse(given, PretrainConfig, "cfg"))
    without_beta = {"exclude": {"inner": {"mirror_position": {"beta": 0}}, "by": "patient"}}
    assemble(parse(given | {"pairs": without_beta}, PretrainConfig, "cfg"))
    assemble(parse(given | {"views": {"mri": {"flip_probability": [0, 1, 1]}}}, PretrainConfig, "cfg"))
