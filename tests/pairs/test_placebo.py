"""A placebo removes only a strategy's signal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from medcl3d.config.field_types import Choice
from medcl3d.core.errors import ConfigError
from medcl3d.pairs import PAIRS
from medcl3d.pairs.augmented_views import AugmentedViews
from medcl3d.pairs.placebo import placebo
from medcl3d.pairs.traits import StrategyTraits
from tests.pairs.collections import make_collection


@dataclass(frozen=True)
class ByAge(AugmentedViews):
    traits: ClassVar[StrategyTraits] = StrategyTraits(signal_columns=("age", "patient"))


def test_signal_columns_are_permuted_together_and_others_are_unchanged() -> None:
    collection = make_collection(0, 30)
    shuffled = placebo(collection, ByAge(), seed=1)
    before = sorted(zip(collection.columns["age"], collection.columns["patient"], strict=True))
    assert sorted(zip(shuffled.columns["age"], shuffled.columns["patient"], strict=True)) == before
    assert not np.array_equal(shuffled.columns["age"], collection.columns["age"])
    assert np.array_equal(shuffled.columns["modality"], collection.columns["modality"])
    assert np.array_equal(shuffled.columns["age"], placebo(collection, ByAge(), seed=1).columns["age"])
    assert not np.array_equal(shuffled.columns["age"], placebo(collection, ByAge(), seed=2).columns["age"])


def test_a_strategy_without_signal_columns_has_no_placebo() -> None:
    with pytest.raises(ConfigError, match="no signal column"):
        placebo(make_collection(0, 4), AugmentedViews(), seed=0)


def test_columns_of_patients_are_permuted_among_patients() -> None:
    """Scans of a patient then still share them, as in the strategy."""

    @dataclass(frozen=True)
    class BySex(AugmentedViews):
        traits: ClassVar[StrategyTraits] = StrategyTraits(signal_columns=("sex", "class"))

    collection = make_collection(0, 40)
    shuffled = placebo(collection, BySex(), seed=1)
    patient, sex = collection.columns["patient"], shuffled.columns["sex"]
    assert all(len(np.unique(sex[patient == one])) == 1 for one in np.unique(patient))
    assert sorted(sex) == sorted(collection.columns["sex"])
    assert not np.array_equal(sex, collection.columns["sex"])
    by_scan = placebo(collection, ByAge(), seed=1).columns["age"]  # differs within patients
    assert any(len(np.unique(by_scan[patient == one])) > 1 for one in np.unique(patient))


@pytest.mark.parametrize(
    "inner",
    [
        "same_patient",
        "longitudinal",
        "body_position",
        "cycle_voxels",
        {"tabular_neighbours": {"columns": {"age": 5}}},
    ],
)
def test_a_placebo_of_exclude_does_not_change_the_positives_of_its_inner_strategy(inner: Any) -> None:
    collection = make_collection(0, 12)
    columns = ["patient", "frame", *(["modality"] if isinstance(inner, dict) else [])]
    for column in columns:
        both = PAIRS.build(Choice("exclude", {"inner": inner, "by": column}))
        with pytest.raises(ConfigError, match="no signal column"):
            placebo(collection, both, seed=0)
    other = PAIRS.build(Choice("exclude", {"inner": inner, "by": "sex"}))
    shuffled = placebo(collection, other, seed=0)
    assert np.array_equal(shuffled.columns["patient"], collection.columns["patient"])


def test_views_of_a_scan_have_a_placebo_of_exclude_by_patient() -> None:
    both = PAIRS.build(Choice("exclude", {"inner": "overlapping_crops", "by": "patient"}))
    collection = make_collection(0, 12)
    shuffled = placebo(collection, both, seed=0)
    assert not np.array_equal(shuffled.columns["patient"], collection.columns["patient"])


def test_a_missing_column_is_an_error() -> None:
    @dataclass(frozen=True)
    class ByWeight(AugmentedViews):
        traits: ClassVar[StrategyTraits] = StrategyTraits(signal_columns=("weight",))

    with pytest.raises(ConfigError, match="no column weight"):
        placebo(make_collection(0, 4), ByWeight(), seed=0)
