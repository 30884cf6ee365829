"""Cycles across patients: a slow reference, features that are coordinates, annealing, training, resume."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from medcl3d.core.keys import Keys
from medcl3d.objectives.relating import Relating
from medcl3d.pairs import link
from medcl3d.pairs.cycle_voxels import CycleVoxels
from medcl3d.pairs.traits import PROGRESS, sums_of
from medcl3d.pretraining import parts
from medcl3d.pretraining.pretrain import pretrain
from tests.pairs.collections import make_collection
from tests.pairs.test_strategies import batch_of_views

POINTS = 6


def points(seed: int, samples: int = 5) -> Keys:
    """Points of two views of each sample, in a cube of 30 mm of their patient."""
    keys = batch_of_views(CycleVoxels(), make_collection(seed % 50, 6), seed, samples)
    keys = keys.map(lambda column: column.repeat_interleave(POINTS, dim=0))
    rng = np.random.default_rng(seed)
    position = torch.from_numpy(rng.uniform(0, 30, (samples, POINTS, 3)))
    point = torch.arange(POINTS).repeat(2 * samples)
    position = position[keys.sample, point]
    return dataclasses.replace(keys, point=point, position_mm=position, body=position + 0.5)


def features(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 4, generator=generator, dtype=torch.float64))


def slow(strategy: CycleVoxels, keys: Keys, z: Tensor) -> Tensor:
    """Attraction across patients by loops over points, views and samples."""
    similarity, count = (z @ z.T).tolist(), len(keys)
    place = [(int(s), int(p)) for s, p in zip(keys.sample, keys.point, strict=True)]
    items = {one: [i for i in range(count) if place[i] == one] for one in place}

    def alike(one: tuple[int, int], other: tuple[int, int]) -> float:
        return max(similarity[i][j] for i in items[one] for j in items[other])

    def at(one: tuple[int, int], column: str) -> np.ndarray:
        value: np.ndarray = getattr(keys, column)[items[one][0]].numpy()
        return value

    expected = torch.zeros(count, count, dtype=torch.float64)
    for a in items:
        for sample in {s for s, _ in items}:
            near = [
                b
                for b in items
                if b[0] == sample
                and at(a, "patient") != at(b, "patient")
                and np.linalg.norm(at(a, "body") - at(b, "body")) < strategy.radius_mm
            ]
            if not near:
                continue
            b = max(near, key=lambda one: alike(a, one))
            back = max((one for one in items if one[0] == a[0]), key=lambda one: alike(one, b))
            error = np.linalg.norm(at(a, "position_mm") - at(back, "position_mm"))
            weight = strategy.alpha * np.exp(-(error**2) / (2 * strategy.sigma_mm**2))
            for i in items[a]:
                for j in items[b]:
                    expected[i, j] = weight
    return expected


@given(seed=st.integers(0, 1000))
def test_cycles_are_those_of_a_slow_loop(seed: int) -> None:
    strategy, keys = CycleVoxels(radius_mm=14.0, alpha=0.7), points(seed)
    z = features(len(keys), seed)
    relation = strategy.relate(*link(strategy, keys, keys, z @ z.T), None)
    expected = slow(strategy, keys, z)
    other_patient = keys.patient[:, None] != keys.patient
    torch.testing.assert_close(
        relation.positive[other_patient].double(), expected[other_patient], atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        relation.negative[other_patient].double(), 1 - expected[other_patient], atol=1e-6, rtol=0
    )
    within, without = strategy.relate(keys, keys, None), ~other_patient
    assert torch.equal(relation.positive[without], within.positive[without])
    assert torch.equal(relation.negative[without], within.negative[without])
    assert (within.positive[other_patient] == 0).all()


@given(seed=st.integers(0, 1000))
def test_linked_relations_are_equal_for_tiles_permutations_and_ranks(seed: int) -> None:
    strategy, keys = CycleVoxels(), points(seed)
    z = features(len(keys), seed)
    whole = strategy.relate(*link(strategy, keys, keys, z @ z.T), None)
    rows, cols = link(strategy, keys, keys, z @ z.T)
    tile = strategy.relate(rows[5:20], cols[3:41], None)
    assert torch.equal(tile.positive, whole.positive[5:20, 3:41])
    assert torch.equal(tile.negative, whole.negative[5:20, 3:41])
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(keys)))
    mixed = strategy.relate(*link(strategy, keys[order], keys, z[order] @ z.T), None)
    assert torch.equal(mixed.positive, whole.positive[order])
    # A rank has the rows of some samples and all columns.
    mine = keys.sample < 2
    part = strategy.relate(*link(strategy, keys[mine], keys, z[mine] @ z.T), None)
    assert torch.equal(part.positive, whole.positive[mine]) and torch.equal(
        part.negative, whole.negative[mine]
    )


def test_features_that_are_positions_find_the_same_place_and_return() -> None:
    """Two patients with the same points: each finds its twin, whatever the order of the points."""
    keys = points(3, samples=4)
    position = keys.position_mm[keys.sample == keys.sample[0]][:POINTS]
    position = position[keys.point]
    keys = dataclasses.replace(keys, position_mm=position, body=position)
    z = torch.cdist(position, position[:POINTS]).neg().exp()  # one feature per place, largest there
    z = F.normalize(z.double())
    strategy = CycleVoxels(alpha=1.0)
    relation = strategy.relate(*link(strategy, keys, keys, z @ z.T), None)
    other = keys.patient[:, None] != keys.patient
    twin = keys.point[:, None] == keys.point
    assert (relation.positive[other & twin] == 1).all() and (relation.positive[other & ~twin] == 0).all()
    sums = sums_of(strategy, link(strategy, keys, keys, z @ z.T)[0])
    found, count = sums["cycles_within_5mm"]
    assert found == count and count > 0


def test_a_radius_that_nothing_reaches_leaves_the_inner_relation() -> None:
    keys, strategy = points(1), CycleVoxels(radius_mm=1e-9)
    z = features(len(keys), 0)
    rows, cols = link(strategy, keys, keys, z @ z.T)
    found, alone = strategy.relate(rows, cols, None), strategy.relate(keys, keys, None)
    assert torch.equal(found.positive, alone.positive) and torch.equal(found.negative, alone.negative)
    assert all(float(numerator) == 0 for numerator, _ in strategy.sums(rows).values())


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.29, 0.0), (0.4, 0.5), (0.5, 1.0), (0.9, 1.0)])
def test_attraction_across_patients_grows_after_the_start(progress: float, share: float) -> None:
    keys, strategy = points(2), CycleVoxels(start=0.3, ramp=0.2)
    z = features(len(keys), 2)
    full = strategy.relate(*link(strategy, keys, keys, z @ z.T), None)
    relating = Relating(strategy.relate, strategy)
    relating.progress = progress
    found = relating.tiles(keys, keys, z, z)(slice(None), z @ z.T).relation
    other = keys.patient[:, None] != keys.patient
    torch.testing.assert_close(found.positive[other], share * full.positive[other])
    assert full.positive[other].sum() > 0
    numerator, denominator = relating.sums["cycle_positive"]
    views = 2  # of each matched point
    torch.testing.assert_close(
        float(numerator), float(found.positive[other].sum()) / views, atol=1e-4, rtol=1e-5
    )
    assert denominator == len(keys)


def test_a_ramp_of_0_is_a_step() -> None:
    keys, strategy = points(2), CycleVoxels(start=0.5, ramp=0.0)
    rows, _ = link(strategy, keys, keys, torch.eye(len(keys), dtype=torch.float64))
    for progress, some in ((0.49, False), (0.5, True)):
        done = torch.full((len(rows),), progress, dtype=torch.float64)
        late = dataclasses.replace(rows, linked={**rows.linked, PROGRESS: done})
        assert bool(strategy.sums(late)["cycle_positive"][0] > 0) is some


def config_of(store: Path, out: Path, **fields: Any) -> dict[str, Any]:
    return {
        "data": {"root": str(store), "patch_size": [16, 16, 16]},
        "pairs": {"cycle_voxels": {"start": 0.25, "ramp": 0.25, "radius_mm": 60, "num_points": 16}},
        "views": "mri",
        "encoder": {"unet3d": {"channels": [4, 8], "strides": [1, 2]}},
        "objective": "dense",
        "train": {"steps": 8, "samples_per_step": 4, "log_every": 1, "checkpoint_every": 4, "workers": 0},
        "out_dir": str(out),
        **fields,
    }


def train(config: dict[str, Any], folder: Path, *overrides: str) -> list[dict[str, float]]:
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))
    run = pretrain(path, overrides)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def test_it_trains_and_logs_its_cycles(tiny_store: Path, tmp_path: Path) -> None:
    rows = train(config_of(tiny_store, tmp_path / "run"), tmp_path)
    assert len(rows) == 8 and np.isfinite([row["loss"] for row in rows]).all()
    assert all(row["cycle_candidates"] > 0 for row in rows)
    assert all(
        row["cycles_within_5mm"] <= row["cycles_within_10mm"] <= row["cycles_within_20mm"] <= 1
        for row in rows
    )
    attraction = [row["cycle_positive"] for row in rows]
    assert attraction[:3] == [0, 0, 0] and min(attraction[3:]) > 0


def test_a_resumed_run_has_the_same_bits(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(config_of(tiny_store, tmp_path / "whole"), tmp_path)
    before_step = parts.Learner.before_step

    def interrupted(self: parts.Learner, step: int, steps: int) -> None:
        if step == 6:
            raise KeyboardInterrupt
        before_step(self, step, steps)

    monkeypatch.setattr(parts.Learner, "before_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config_of(tiny_store, tmp_path / "part"), tmp_path)
    monkeypatch.setattr(parts.Learner, "before_step", before_step)
    resumed = train(config_of(tiny_store, tmp_path / "part"), tmp_path)
    last = {row["step"]: row for row in resumed}
    for row in whole:
        same = last[row["step"]]
        assert all(same[name] == row[name] for name in ("loss", "cycle_positive", "gradient_norm"))
    weights = [(tmp_path / name / "encoder.safetensors").read_bytes() for name in ("whole", "part")]
    assert weights[0] == weights[1]
