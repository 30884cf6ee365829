"""Landmark matching between patients by features of crops, with errors in mm."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medcl3d.core.errors import DataError
from medcl3d.downstream.crop_dataset import Example
from medcl3d.downstream.landmarks import MEASURES, Landmarks, _centres, _first_of_each
from medcl3d.store.store import Store

SIZE = (8, 8, 8)
TRAIN, TEST = [1, 2, 3, 4], [0, 6, 7]


def ball_features(store: Store, scale: float = 1.0):
    """Features of the offset in mm from the ball: the nearest crop is most similar to that at the ball."""

    def features_of(examples: Sequence[Example]) -> np.ndarray:
        rows = []
        for example in examples:
            ball = np.argwhere(store.read_label(example.scan) == 1).mean(0)
            centre = np.array(example.boxes[0].start) + np.array(SIZE) // 2
            offset = (centre - ball) * store.collection.spacings[example.scan]
            rows.append(np.concatenate([np.exp(-np.abs(offset) / 4), scale * offset]))
        return np.array(rows)

    return features_of


def of_the_ball(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [case for case in cases if case["class"] == "ball"]


def test_features_of_position_match_within_the_stride(ball_store: Store) -> None:
    found, cases = Landmarks(structures=2, stride_mm=2).measure(
        ball_features(ball_store), ball_store, (TRAIN, TEST), SIZE, 0
    )
    assert set(found) == set(MEASURES) and found["error_mm"].n == 3
    balls = of_the_ball(cases)
    error, chance = (np.mean([case[name] for case in balls]) for name in ("error_mm", "chance_error_mm"))
    assert error < 2.5 < chance, "half a stride per axis, compared with random positions in the scan"
    assert {(case["patient"], case["in"]) for case in balls} == {
        (f"p{a}", f"scan{b}") for a in TEST for b in TEST if a != b
    }
    cubes = {(case["patient"], case["in"]) for case in cases if case["class"] == "cube"}
    assert cubes == {("p6", "scan7"), ("p7", "scan6")}, "the first scan has no cube"


def test_random_features_are_not_better_than_chance(ball_store: Store) -> None:
    rng = np.random.default_rng(0)
    noise = Landmarks(structures=2, stride_mm=2)
    found, _ = noise.measure(
        lambda examples: rng.normal(size=(len(examples), 6)), ball_store, (TRAIN, TEST), SIZE, 0
    )
    assert abs(found["error_mm"].mean / found["chance_error_mm"].mean - 1) < 0.5


def test_collapsed_features_equal_chance_exactly(ball_store: Store) -> None:
    _, cases = Landmarks(structures=2).measure(
        lambda examples: np.full((len(examples), 6), 0.3), ball_store, (TRAIN, TEST), SIZE, 0
    )
    assert all(case["error_mm"] == case["chance_error_mm"] for case in cases)


def test_non_finite_features_are_refused(ball_store: Store) -> None:
    with pytest.raises(DataError, match="are not finite"):
        Landmarks().measure(
            lambda examples: np.full((len(examples), 6), np.nan), ball_store, (TRAIN, TEST), SIZE, 0
        )


def test_the_corresponding_point_of_the_body_is_near_structures_at_similar_positions(
    ball_store: Store,
) -> None:
    """Balls are within 2 voxels of the centre of their scan, along axes of up to 2 mm."""
    _, cases = Landmarks(structures=2).measure(ball_features(ball_store), ball_store, (TRAIN, TEST), SIZE, 0)
    assert np.mean([case["same_place_error_mm"] for case in of_the_ball(cases)]) < np.sqrt(4**2 + 4**2 + 8**2)


def test_errors_are_in_mm_from_the_centre_of_the_structure(ball_store: Store) -> None:
    _, cases = Landmarks(structures=2, stride_mm=2, partners=1).measure(
        ball_features(ball_store), ball_store, (TRAIN, TEST), SIZE, 0
    )
    assert len(of_the_ball(cases)) == 3, "one partner each"
    case = next(case for case in of_the_ball(cases) if case["in"] == "scan7")  # slices of 2 mm
    ball = np.argwhere(ball_store.read_label(7) == 1)
    spacing = ball_store.collection.spacings[7]
    assert spacing.tolist() == [1, 1, 2]
    centre = ball[np.square((ball - ball.mean(0)) * spacing).sum(1).argmin()]
    grid = Landmarks(stride_mm=2)._grid(ball_store, 7)
    distance = np.linalg.norm((grid - centre) * spacing, axis=1)
    assert case["chance_error_mm"] == pytest.approx(distance.mean(), abs=1e-3) and case[
        "error_mm"
    ] in np.round(distance, 3)


def test_structures_in_only_one_patient_are_refused(ball_store: Store) -> None:
    with pytest.raises(DataError, match=r"no structure of .* is in two test patients of one modality"):
        Landmarks().measure(ball_features(ball_store), ball_store, (TRAIN, [6]), SIZE, 0)


def test_features_are_standardised_on_scans_of_the_modality(ball_store: Store) -> None:
    collection, seen = ball_store.collection, list[int]()
    table = collection.table.assign(modality=["CT", "MR", "MR", "MR", "CT", "MR", "CT", "CT"])
    store = dataclasses.replace(ball_store, collection=dataclasses.replace(collection, table=table))

    def features_of(examples: Sequence[Example]) -> np.ndarray:
        seen.extend(example.scan for example in examples)
        return ball_features(store)(examples)

    Landmarks(structures=2, stride_mm=2).measure(features_of, store, (TRAIN, TEST), SIZE, 0)
    assert set(seen) == {4, *TEST}, "no MR scan is read"
    with pytest.raises(DataError, match="no training scan has the modality 'CT' of test scans"):
        Landmarks(structures=2, stride_mm=2).measure(features_of, store, ([1, 2], TEST), SIZE, 0)


def test_a_patient_is_used_once_per_modality() -> None:
    patient, modality = np.array(["a", "a", "b", "a"]), np.array(["T1", "T1", "T1", "T2"])
    assert _first_of_each([0, 1, 2, 3], patient, modality) == [0, 2, 3]


def test_the_first_scan_with_a_label_map_is_measured(
    ball_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    patients = ball_store.collection.table["patient"].where(np.arange(len(ball_store)) != 5, "p0")
    monkeypatch.setitem(ball_store.collection.table, "patient", patients)
    assert not ball_store.has_label(5)
    sides = TRAIN, [5, *TEST]
    found, _ = Landmarks(structures=2).measure(ball_features(ball_store), ball_store, sides, SIZE, 0)
    assert found["error_mm"].n == 3


def test_the_centre_is_the_voxel_nearest_to_the_centroid_in_world_mm() -> None:
    """Of four voxels around a centroid in a sheared scan, those on the shorter diagonal are nearest."""
    affine = np.eye(4)
    affine[1, 2] = 0.5
    voxels = np.array([[0, 0, 0], [0, 2, 2], [0, 2, 0], [0, 0, 2]])
    flat = np.ravel_multi_index(voxels.T, (3, 3, 3))
    collection = SimpleNamespace(
        affines=affine[None], shapes=np.full((1, 3), 3), spacings=np.linalg.norm(affine[None, :3, :3], axis=1)
    )
    store, task = (
        SimpleNamespace(has_label=lambda scan: True, collection=collection),
        SimpleNamespace(voxels_of=lambda store, scan: [flat]),
    )
    assert _centres(task, store, 0)[0].tolist() in ([0, 2, 0], [0, 0, 2])  # type: ignore[arg-type]
