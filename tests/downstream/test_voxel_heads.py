"""Classifiers of voxels, the voxels they are fitted on, and the search of the most similar voxel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from medcl3d.core.errors import ConfigError
from medcl3d.downstream.dense.nearest_voxel import Near, Scale, nearest
from medcl3d.downstream.dense.voxel_grid import Structures, body_of, grid_of, stratified
from medcl3d.downstream.dense.voxel_heads import (
    LabelledVoxels,
    fit_linear,
    fit_nonlinear,
    fold_of_blocks,
    macro_dice,
)
from medcl3d.downstream.dense.voxel_probe import _majority, dice_of_voxels
from medcl3d.store.store import Store


def known(num: int = 400, width: int = 5, seed: int = 0) -> LabelledVoxels:
    """Three classes around three centres."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 3, num)
    features = 3 + 20 * rng.normal(size=(3, width))[classes] + rng.normal(scale=15, size=(num, width))
    weights = rng.uniform(0.5, 2, num)
    return LabelledVoxels(
        torch.from_numpy(features).float(),
        torch.from_numpy(classes),
        torch.from_numpy(weights).float(),
        np.arange(num) % 2,
    )


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_the_linear_head_equals_logistic_regression_of_scikit_learn(c: float) -> None:
    voxels = known()
    head = fit_linear(voxels, 3, [c])
    mean, deviation = voxels.features.mean(0), voxels.features.std(0, correction=0)
    standard = ((voxels.features - mean) / deviation).numpy()
    weights = (voxels.weights / voxels.weights.mean()).numpy()
    wanted = LogisticRegression(C=c, max_iter=2000, tol=1e-8).fit(standard, voxels.classes, weights)
    found = head.scores(voxels.features).softmax(1).numpy()
    np.testing.assert_allclose(found, wanted.predict_proba(standard), atol=2e-3)


def test_the_penalty_is_chosen_on_the_other_fold() -> None:
    """With more features than voxels, the penalty decides, and the better one is used."""
    voxels = known(60, 100)
    noise = LabelledVoxels(torch.randn(60, 100), voxels.classes, torch.ones(60), voxels.folds)
    assert fit_linear(voxels, 3, [1.0]).weight.abs().max() > fit_linear(voxels, 3, [1e-4]).weight.abs().max()
    chosen = fit_linear(voxels, 3, [1e-4, 1.0])
    torch.testing.assert_close(chosen.weight, fit_linear(voxels, 3, [1.0]).weight, rtol=0.1, atol=1e-2)
    assert torch.isfinite(fit_linear(noise, 3, [1e-4, 1.0]).weight).all()


def test_the_nonlinear_head_learns_what_no_linear_head_can_and_repeats() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4000, 2)).astype(np.float32)
    classes = (features[:, 0] * features[:, 1] > 0).astype(np.int64)
    voxels = LabelledVoxels(
        torch.from_numpy(features), torch.from_numpy(classes), torch.ones(4000), np.zeros(4000)
    )
    head = fit_nonlinear(voxels, 2, 3)
    right = (head.scores(voxels.features).argmax(1) == voxels.classes).float().mean()
    linear = (fit_linear(voxels, 2, [1.0]).scores(voxels.features).argmax(1) == voxels.classes).float().mean()
    assert right > 0.93 and linear < 0.7
    again = fit_nonlinear(voxels, 2, 3)
    assert torch.equal(head.scores(voxels.features), again.scores(voxels.features))


def test_blocks_alternate_along_every_axis() -> None:
    places = np.array([[0, 0, 0], [33, 0, 0], [33, 33, 0], [-1, 0, 0], [31, 31, 65]])
    assert fold_of_blocks(places).tolist() == [0, 1, 0, 1, 0]


def test_macro_dice_is_that_of_weighted_voxels() -> None:
    classes, predicted = torch.tensor([0, 1, 1, 2]), torch.tensor([1, 1, 0, 0])
    voxels = LabelledVoxels(torch.zeros(4, 1), classes, torch.tensor([1.0, 2.0, 3.0, 4.0]), np.zeros(4))
    assert macro_dice(voxels, predicted, 4) == pytest.approx((2 * 2 / (5 + 3) + 0) / 2)


def test_the_penalty_is_the_middle_one_if_a_fold_has_no_structure() -> None:
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(600, 3)).astype(np.float32))
    classes = (features[:, 0] > 0).long()

    def weight(folds: np.ndarray, *strengths: float) -> torch.Tensor:
        return fit_linear(LabelledVoxels(features, classes, torch.ones(600), folds), 2, strengths).weight

    strengths, both = (1e-4, 1e-2, 10.0), np.arange(600) % 2
    assert torch.equal(weight(classes.numpy(), *strengths), weight(both, 1e-4, 1e-2, 1e-2))
    assert torch.equal(weight(both, *strengths), weight(both, *strengths, 10.0))


def test_dice_of_voxels_counts_missed_and_omits_absent_structures() -> None:
    found = dice_of_voxels(np.array([1, 1, 0, 0, 3]), np.array([1, 0, 1, 2, 0]), 5)
    assert found[:3].tolist() == [0.5, 0, 0] and np.isnan(found[3])


def test_the_most_frequent_class_of_neighbours_and_the_nearest_among_equals() -> None:
    assert _majority(np.array([[2, 1, 1], [2, 1, 0], [0, 0, 2]]), 3).tolist() == [1, 2, 0]


@pytest.mark.parametrize("k", [1, 3])
def test_nearest_voxels_equal_a_loop(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medcl3d.downstream.dense.nearest_voxel.QUERIES_AT_ONCE", 7)
    rng = np.random.default_rng(0)
    queries, candidates = (rng.normal(size=(n, 4)) for n in (20, 30))
    places, others = (rng.uniform(0, 30, (n, 3)) for n in (20, 30))
    places[0] = 500  # no candidate is near
    unit_q, unit_c = (torch.from_numpy(x / np.linalg.norm(x, axis=1)[:, None]) for x in (queries, candidates))
    anywhere, near = nearest(unit_q, unit_c, k, Near(places, others, 15.0))
    assert near is not None
    for i in range(20):
        cosine = unit_c.numpy() @ unit_q[i].numpy()
        assert anywhere.index[i].tolist() == np.argsort(-cosine)[:k].tolist()
        distance = np.linalg.norm(others - places[i], axis=1)
        if not (distance <= 15).any():
            assert i == 0 and near.index[i, 0] == distance.argmin() and near.cosine[i, 0] == -np.inf
            continue
        allowed = np.where(distance <= 15, cosine, -np.inf)
        count = min(k, int((distance <= 15).sum()))
        assert near.index[i, :count].tolist() == np.argsort(-allowed)[:count].tolist()


def test_a_scale_gives_every_part_the_same_weight() -> None:
    features = torch.randn(5000, 10) * torch.arange(1, 11) + 4
    standard = Scale.of(features, (2, 8)).apply(features)
    assert standard[:, :2].square().sum(1).mean() == pytest.approx(1, abs=1e-3)
    assert standard[:, 2:].square().sum(1).mean() == pytest.approx(1, abs=1e-3)


def test_constant_features_are_equally_similar_to_all() -> None:
    features = torch.full((6, 3), 0.1)
    assert Scale.of(features).directions(features).abs().max() < 1


def test_a_sample_has_every_structure_and_its_weights_restore_frequencies() -> None:
    classes = np.zeros((30, 30, 30), dtype=np.int16)
    classes[5:15, 5:15, 5:15], classes[20, 20, 20:23] = 1, 2
    found = stratified(classes, np.array([1.0, 1.0, 2.0]), 400, np.random.default_rng(0))
    assert len(found.classes) <= 400 and (classes[tuple(found.voxels.T)] == found.classes).all()
    assert len(np.unique(np.ravel_multi_index(found.voxels.T, classes.shape))) == len(found.voxels)
    assert (found.classes == 1).sum() == 100 and (found.classes == 2).sum() == 3
    sums = np.bincount(found.classes, found.weights)
    np.testing.assert_allclose(sums, np.bincount(classes.ravel()))


@pytest.mark.parametrize("most", [1, 50, 700, 10_000])
def test_a_grid_is_regular_in_mm_and_within_its_budget(most: int) -> None:
    mask = np.zeros((20, 24, 12), dtype=bool)
    mask[2:18, 3:20, :11] = True
    found = grid_of(mask, np.array([1.0, 1.0, 2.0]), most)
    assert len(found) <= most and mask[tuple(found.T)].all()
    if most == 700:
        steps = [np.diff(np.unique(axis)).max() for axis in found.T]
        assert len(found) > 250 and max(steps) <= 3
    if most == 10_000:
        assert len(found) == mask.sum()


def test_the_body_has_no_far_air_and_every_structure(ball_store: Store) -> None:
    inside = body_of(ball_store, 1)
    assert inside.shape == tuple(ball_store.collection.shapes[1])
    assert inside[ball_store.read_label(1) > 0].all()


def test_the_largest_structures_are_chosen_over_the_training_side(ball_store: Store) -> None:
    assert Structures.largest(ball_store, [1, 2, 3, 4], 5).names == {1: "ball", 3: "cube"}
    assert Structures.largest(ball_store, [1, 2, 3, 4], 1).names == {1: "ball"}
    assert Structures.largest(ball_store, [0, 1], 5).of(ball_store, 1).max() == 2
    with pytest.raises(ConfigError, match="have no structure"):
        Structures.largest(ball_store, [], 5)
