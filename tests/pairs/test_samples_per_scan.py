"""Several samples of one scan in a step: batch grouping by `samples_per_scan`, and fields without effect."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medcl3d.config.field_types import Choice
from medcl3d.config.loading import parse
from medcl3d.core.errors import ConfigError
from medcl3d.pairs import PAIRS, PairStrategy
from medcl3d.pairs.batch_grouping import BatchGrouping, batch_grouping_of
from medcl3d.pairs.class_labels import ClassLabels
from medcl3d.pairs.combinators import Product, Sum
from medcl3d.pairs.exclude import Exclude
from medcl3d.pairs.hard_negatives import HardNegatives
from medcl3d.pairs.overlapping_crops import OverlappingCrops
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.parts import Pretraining, assemble
from medcl3d.pretraining.summary import summary
from medcl3d.sampling.plan import Plan
from tests.pairs.collections import make_collection

GROUPED = ("overlapping_crops", "physical_overlap", "adjacent_slices", "voxel_correspondence")
TWO = Choice("overlapping_crops", {"samples_per_scan": 2})


def grouping(samples_per_scan: int, num_scans: int = 60) -> BatchGrouping:
    found = batch_grouping_of(
        OverlappingCrops(samples_per_scan=samples_per_scan), make_collection(0, num_scans)
    )
    assert found is not None
    return found


def every_step(plan: Plan, epochs: int = 1) -> list[np.ndarray]:
    return [plan.samples(step)[1] for step in range(epochs * plan.steps_per_epoch)]


@given(
    num_scans=st.integers(1, 30),
    scans_per_step=st.integers(1, 6),
    size=st.integers(2, 5),
    seed=st.integers(0, 99),
)
def test_a_step_holds_groups_of_one_scan_and_an_epoch_visits_all(
    num_scans: int, scans_per_step: int, size: int, seed: int
) -> None:
    plan = Plan(np.arange(num_scans), scans_per_step * size, seed, grouping(size, num_scans))
    steps = every_step(plan)
    for anchors in steps:
        groups = anchors.reshape(scans_per_step, size)
        assert (groups == groups[:, :1]).all(), "a group is of one scan"
        if num_scans >= scans_per_step:
            assert len(set(groups[:, 0])) == scans_per_step, "groups are of different scans"
    visits = np.bincount(np.concatenate(steps), minlength=num_scans)
    assert visits.max() - visits.min() <= size
    assert (visits == 0).sum() < scans_per_step, "only an incomplete step is left for the next epoch"


def test_grouping_depends_only_on_seed_and_epoch() -> None:
    plan, again, other = (Plan(np.arange(60), 8, seed, grouping(4)) for seed in (0, 0, 1))
    order = [step.tolist() for step in every_step(plan, 3)]
    for step in (50, 3, 17):  # in any order, as after a resume
        assert again.samples(step)[1].tolist() == order[step]
    assert other.samples(0)[1].tolist() != order[0] and order[0] != order[plan.steps_per_epoch]


def test_without_the_field_batches_are_unchanged() -> None:
    """Recorded before the field existed."""
    collection = make_collection(0, 8)
    assert all(batch_grouping_of(PAIRS.build(Choice(name)), collection) is None for name in GROUPED)
    assert [step.tolist() for step in every_step(Plan(np.arange(7), 3, 0), 2)] == [
        [2, 4, 3],
        [6, 5, 0],
        [1, 3, 6],
        [0, 4, 2],
    ]
    assert [step.tolist() for step in every_step(Plan(np.arange(3), 4, 1), 2)] == [[0, 1, 2, 2], [2, 0, 1, 1]]
    labels = Plan(np.arange(8), 4, 0, batch_grouping_of(ClassLabels(), collection))
    assert [step.tolist() for step in every_step(labels)] == [[2, 7, 4, 1], [3, 6, 5, 0]]


@pytest.mark.parametrize(
    "strategy",
    [
        Exclude(inner=TWO, by="modality"),
        HardNegatives(inner=TWO),
        Sum(parts=(Choice("augmented_views"), TWO)),
        Product(parts=(Choice("augmented_views"), TWO)),
        Sum(parts=(Choice("exclude", {"inner": TWO, "by": "patient"}), Choice("same_patient"))),
    ],
)
def test_wrapped_strategies_keep_their_grouping(strategy: PairStrategy) -> None:
    found = batch_grouping_of(strategy, make_collection(0, 8))
    assert found is not None and found.samples_per_group == found.samples_per_scan == 2


def test_the_largest_value_of_the_parts_is_used() -> None:
    parts = Sum(parts=(TWO, Choice("physical_overlap", {"samples_per_scan": 4})))
    found = batch_grouping_of(parts, make_collection(0, 8))
    assert found is not None and found.samples_per_scan == 4


def test_patients_of_one_label_and_samples_of_one_scan() -> None:
    """Two patients of one label with two samples of each: the two groupings multiply."""
    collection = make_collection(0, 24)
    found = batch_grouping_of(ClassLabels(inner=TWO, group_size=2), collection)
    assert found is not None and found.samples_per_group == 4
    labels, patients = collection.column("class"), collection.columns["patient"]
    for anchors in every_step(Plan(np.arange(24), 8, 0, found), 2):
        for group in anchors.reshape(-1, 2, 2):
            assert (
                (group == group[:, :1]).all()
                and len(set(patients[group[:, 0]])) == 2
                and len(set(labels[group[:, 0]])) == 1
            )


def config_of(store: Path, pairs: Any, objective: Any = "simclr", samples: int = 8) -> PretrainConfig:
    config = {
        "data": {"root": str(store), "patch_size": [16, 16, 16], "smaller_than_patch": "pad"},
        "pairs": pairs,
        "views": "mri",
        "encoder": {"unet3d": {"channels": [4, 8], "strides": [1, 2]}},
        "objective": objective,
        "train": {"steps": 3, "samples_per_step": samples},
        "out_dir": "unused",
    }
    return parse(config, PretrainConfig, "test")


def parts_of(store: Path, pairs: Any, objective: Any = "simclr", samples: int = 8) -> Pretraining:
    return assemble(config_of(store, pairs, objective, samples))


def warnings_of(*of: Any, **more: Any) -> list[str]:
    return [line.strip() for line in summary(parts_of(*of, **more)).splitlines() if "has no effect" in line]


@pytest.mark.parametrize("name", GROUPED)
def test_samples_of_one_scan_are_different_crops_for_any_number_of_ranks(tiny_store: Path, name: str) -> None:
    gap = {"max_gap_mm": 20.0, "ignore_mm": 40.0} if name == "adjacent_slices" else {}
    dataset = parts_of(tiny_store, {name: {"samples_per_scan": 4, **gap}}).dataset()
    per_rank = [dataclasses.replace(dataset, rank=rank, world_size=4) for rank in range(4)]
    for step in (2, 0):
        raw = dataset[step]
        boxes = [tuple(view.box.start) for view in raw.main.views]
        scans = raw.keys.scan.reshape(2, 8)
        assert (scans == scans[:, :1]).all() and scans[0, 0] != scans[1, 0]
        assert len(set(boxes[:8])) > 4 and boxes[:2] not in (boxes[2:4], boxes[4:6], boxes[6:8])
        assert torch.equal(raw.main.crops, torch.cat([of_rank[step].main.crops for of_rank in per_rank]))


def negatives_of_one_scan(parts: Pretraining, steps: int = 3) -> int:
    """Number of negatives between different samples of one scan, over some steps."""
    number = 0
    for step in range(steps):
        keys = parts.dataset()[step].keys
        one_scan = (keys.scan[:, None] == keys.scan) & (keys.sample[:, None] != keys.sample)
        number += int((parts.strategy.relate(keys, keys, None).negative[one_scan] > 0).sum())
    return number


def test_negatives_of_one_scan_occur_with_the_field_and_never_without(tiny_store: Path) -> None:
    negative = {"same_scan": "negative", "min_iou": 0.5}
    assert negatives_of_one_scan(parts_of(tiny_store, {"overlapping_crops": negative})) == 0
    assert (
        negatives_of_one_scan(
            parts_of(tiny_store, {"overlapping_crops": {**negative, "samples_per_scan": 4}})
        )
        > 10
    )
    assert negatives_of_one_scan(parts_of(tiny_store, {"overlapping_crops": {"samples_per_scan": 4}})) == 0, (
        "ignored by default"
    )


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"overlapping_crops": {"samples_per_scan": 3}}, r"train.samples_per_step = 8 is not a multiple "
                                                         r"of pairs.overlapping_crops: "
         r"samples_per_scan = 3; use 6"),
        ({"physical_overlap": {"samples_per_scan": 16}}, r"pairs.physical_overlap: samples_per_scan = 16; "
                                                         r"use 16"),
        ({"class_labels": {"inner": {"overlapping_crops": {"samples_per_scan": 3}}}},
         r"pairs.class_labels: group_size = 2 times samples_per_scan = 3; use 6"),
    ],
)  # fmt: skip
def test_groups_across_the_border_of_two_steps_are_refused(
    tiny_store: Path, pairs: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parts_of(tiny_store, pairs)


NEGATIVE = {"overlapping_crops": {"same_scan": "negative"}}


def test_a_field_without_effect_is_reported(tiny_store: Path) -> None:
    (line,) = warnings_of(tiny_store, NEGATIVE)
    assert line.startswith(
        "warning: pairs.overlapping_crops: same_scan = negative has no effect: a step of 8 samples never "
        "holds two of one"
    )
    assert line.endswith("scans); set samples_per_scan to 2 or more")
    slices = {"adjacent_slices": {"max_gap_mm": 20.0, "ignore_mm": 40.0}}
    assert "ignore_mm = 40.0 has no effect" in warnings_of(tiny_store, slices)[0]
    (line,) = warnings_of(tiny_store, {"exclude": {"inner": NEGATIVE, "by": "modality"}})
    assert line.startswith("warning: pairs.exclude: same_scan of overlapping_crops = negative has no effect")
    (line,) = warnings_of(tiny_store, NEGATIVE, "byol")
    assert line.endswith("has no effect: objective.byol uses no negatives; choose another objective")
    (line,) = warnings_of(tiny_store, {"class_labels": {"inner": NEGATIVE, "group_size": 1}})
    assert line.endswith(
        "only the views of the inner strategy are used, not its relation; leave the field out"
    )


def test_groups_of_several_patients_do_not_hold_two_samples_of_a_scan(tiny_store: Path) -> None:
    """With an even number of scans per class no scan is repeated, so the field has no effect."""
    labels = {"class_labels": {"column": "modality", "group_size": 2}}
    (line,) = warnings_of(tiny_store, {"sum": {"parts": [NEGATIVE, labels]}})
    assert "never holds two of one scan" in line


@pytest.mark.parametrize(
    ("pairs", "objective", "samples"),
    [
        ("overlapping_crops", "simclr", 8),
        ({"overlapping_crops": {"same_scan": "negative", "samples_per_scan": 2}}, "simclr", 8),
        (NEGATIVE, {"moco": {"queue_size": 16}}, 8),
        (NEGATIVE, "simclr", 400),
        ({"product": {"parts": ["same_patient", NEGATIVE]}}, "simclr", 8),
        (NEGATIVE, "mae", 8),
        ({"adjacent_slices": {"max_gap_mm": 20.0}}, "simclr", 8),
    ],
)  # fmt: skip
def test_a_field_with_an_effect_is_not_reported(
    tiny_store: Path, pairs: Any, objective: Any, samples: int
) -> None:
    """A default, a grouping, a queue of earlier batches, more samples than scans, samples of two scans, no
    relation at all.
    """
    assert warnings_of(tiny_store, pairs, objective, samples) == []
