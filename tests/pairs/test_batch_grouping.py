"""Batch grouping: batches with scans that attract each other."""

from __future__ import annotations

import numpy as np
import pytest

from medcl3d.config.field_types import Choice
from medcl3d.pairs.batch_grouping import BatchGrouping, batch_grouping_of
from medcl3d.pairs.class_labels import ClassLabels
from medcl3d.pairs.combinators import Sum
from medcl3d.pairs.exclude import Exclude
from medcl3d.pairs.metadata_kernel import MetadataKernel
from medcl3d.sampling.plan import Plan
from tests.pairs.collections import make_collection


def rare_classes(number: int = 60) -> np.ndarray:
    """Many classes of few patients: in random order, a batch rarely holds two of one class."""
    return np.arange(number) // 3


def companions(labels: np.ndarray, group_size: int = 3) -> BatchGrouping:
    return BatchGrouping(
        group_size, lambda scan: (labels == labels[scan]).astype(float), np.arange(len(labels))
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_group_is_of_one_class_and_different_patients(seed: int) -> None:
    labels = rare_classes()
    plan = Plan(np.arange(60), 6, seed, companions(labels))
    for step in range(3 * plan.steps_per_epoch):
        _, anchors = plan.samples(step)
        for group in anchors.reshape(-1, 3):
            assert len(set(labels[group])) == 1 and len(set(group)) == 3
    ungrouped = Plan(np.arange(60), 6, seed)
    singletons = [
        np.mean([(labels[a] == labels[x]).sum() == 1 for x in a])
        for a in (ungrouped.samples(s)[1] for s in range(10))
    ]
    assert np.mean(singletons) > 0.7, "random order rarely groups them"


def test_an_epoch_visits_every_anchor_and_depends_only_on_seed_and_epoch() -> None:
    plan, again, other = (Plan(np.arange(60), 6, seed, companions(rare_classes())) for seed in (0, 0, 1))
    epoch = np.concatenate([plan.samples(step)[1] for step in range(plan.steps_per_epoch)])
    assert sorted(epoch) == list(range(60))
    later = [again.samples(step)[1].tolist() for step in (25, 3, 17)]  # in any order, as after a resume
    assert later == [plan.samples(step)[1].tolist() for step in (25, 3, 17)]
    assert plan.samples(0)[1].tolist() != other.samples(0)[1].tolist()
    assert plan.samples(0)[1].tolist() != plan.samples(plan.steps_per_epoch)[1].tolist()


def test_scans_of_one_patient_are_not_grouped() -> None:
    patients = np.arange(12) // 2
    labels = patients % 2
    found = BatchGrouping(3, lambda scan: (labels == labels[scan]).astype(float), patients)
    order = found.arranged(np.arange(12), np.random.default_rng(0))
    for group in order.reshape(-1, 3):
        assert len(set(patients[group])) == 3 and len(set(labels[group])) == 1


def test_scans_without_a_group_are_visited() -> None:
    labels = np.array([0, 0, 0, 1, 2, 3, 4])  # four without a class
    order = companions(labels).arranged(np.arange(7), np.random.default_rng(0))
    assert set(order) == set(range(7)) and len(order) % 3 == 0


def test_scans_with_similar_metadata_are_grouped_more_often() -> None:
    collection = make_collection(0, 60)
    strategy = MetadataKernel(columns={"age": 3.0}, group_size=4)
    plan = Plan(np.arange(60), 8, 0, batch_grouping_of(strategy, collection))
    age = collection.columns["age"]

    def spread(plan: Plan) -> float:
        groups = [group for step in range(20) for group in plan.samples(step)[1].reshape(-1, 4)]
        return float(np.mean([np.ptp(age[group]) for group in groups]))

    assert spread(plan) < 0.5 * spread(Plan(np.arange(60), 8, 0))


def test_wrapped_strategies_keep_their_groups() -> None:
    collection = make_collection(0, 8)
    labels = Choice("class_labels", {"group_size": 2})
    assert batch_grouping_of(Exclude(inner=labels, by="modality"), collection) is not None
    assert batch_grouping_of(Sum(parts=(Choice("overlapping_crops"), labels)), collection) is not None
    assert batch_grouping_of(ClassLabels(group_size=1), collection) is None
