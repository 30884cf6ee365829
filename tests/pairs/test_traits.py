"""Traits of strategies, and the attributes of earlier versions."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from medcl3d.config.field_types import Choice
from medcl3d.core.collection import Collection
from medcl3d.pairs import (
    PAIRS,
    all_parts,
    has_gradient_through_negatives,
    needs_features,
    queue_size,
    traits_of,
)
from medcl3d.pairs.augmented_views import AugmentedViews
from medcl3d.pairs.batch_grouping import BatchGrouping, batch_grouping_of
from medcl3d.pairs.combinators import Sum
from medcl3d.pairs.exclude import Exclude
from medcl3d.pairs.hard_negatives import HardNegatives
from medcl3d.pairs.nearest_neighbours import NearestNeighbours
from medcl3d.pairs.placebo import placebo
from medcl3d.pairs.traits import StrategyTraits, num_points_of
from tests.pairs.collections import make_collection

VIEWS = Choice("augmented_views")


class Old:
    """A strategy with every attribute of version 0.1."""

    informative = ("age",)
    informs = ("negative",)
    constant_across = ("scan",)
    within_scan = ("gap",)
    relates_points = True
    crosses_patients = True
    inner_draws_only = True
    strategies = (AugmentedViews(),)
    samples_per_scan = 2
    queue_size = 8
    temperature = 0.5
    detach_weights = False
    on_missing = "drop"
    num_points = 3

    def companions(self, collection: Collection) -> BatchGrouping | None:
        return BatchGrouping(3, lambda scan: collection.columns["age"] * 0 + 1, collection.columns["patient"])

    def link(self, rows: Any, cols: Any, similarity: Any) -> Any:
        return rows, cols


def test_old_attributes_give_the_same_traits_with_a_warning_that_names_the_new_form() -> None:
    old: Any = Old()
    words = r"pairs: Old: informative, .*traits = StrategyTraits\(signal_columns=\('age',\), "
    with pytest.warns(FutureWarning, match=words) as warned:
        traits = traits_of(old)
    assert "gradient_through_negatives=True" in str(warned[0].message)
    assert traits == StrategyTraits(
        signal_columns=("age",),
        signal_weights=frozenset({"negative"}),
        constant_across=("scan",),
        within_scan=("gap",),
        samples_per_scan=2,
        batch_grouping=old.companions,
        crosses_patients=True,
        relates_points=True,
        inner_draws_only=True,
        queue_size=8,
        temperature=0.5,
        gradient_through_negatives=True,
        on_missing="drop",
    )


@pytest.mark.filterwarnings("ignore:pairs. Old:FutureWarning")
def test_a_strategy_with_old_attributes_still_works() -> None:
    old, collection = Old(), make_collection(0, 12)
    strategy: Any = old
    assert all_parts(strategy) == (old, AugmentedViews())
    assert needs_features(strategy) and queue_size(strategy) == 8 and has_gradient_through_negatives(strategy)
    assert num_points_of(strategy) == 3
    grouping = batch_grouping_of(strategy, collection)
    assert grouping is not None and (grouping.group_size, grouping.samples_per_scan) == (3, 2)
    shuffled = placebo(collection, strategy, seed=1)
    assert (shuffled.columns["age"] != collection.columns["age"]).any()


def test_an_old_combinator_needs_features_if_an_inner_strategy_does() -> None:
    class OldSum(Old):
        passes_link_on = True

    class OldSumOfNeighbours(OldSum):
        strategies: Any = (NearestNeighbours(inner=VIEWS),)

    for constructor, expected in ((OldSum, False), (OldSumOfNeighbours, True)):
        strategy: Any = constructor()
        with pytest.warns(FutureWarning, match="passes_link_on"):
            assert needs_features(strategy) is expected


def test_an_old_attribute_of_a_subclass_replaces_the_inherited_trait() -> None:
    @dataclass(frozen=True)
    class ByAge(AugmentedViews):
        informative = ("age",)

    words = r"pairs: ByAge: informative: .*StrategyTraits\(signal_columns=\('age',\)\)"
    with pytest.warns(FutureWarning, match=words):
        traits = traits_of(ByAge())
    assert traits == StrategyTraits(signal_columns=("age",), constant_across=("sample",))


def test_fields_with_the_name_of_an_old_attribute_do_not_warn_in_the_new_form() -> None:
    class New(AugmentedViews):
        traits: ClassVar[StrategyTraits] = StrategyTraits(queue_size=4)
        queue_size = 8
        temperature = 1.0

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert traits_of(New()) == StrategyTraits(queue_size=4)


def test_traits_of_combinators_follow_their_parts() -> None:
    neighbours = Choice("nearest_neighbours", {"queue_size": 8})
    for strategy, expected in (
        (Sum(parts=(VIEWS, VIEWS)), False),
        (Sum(parts=(VIEWS, neighbours)), True),
        (Exclude(inner=VIEWS), False),
        (Exclude(inner=neighbours), True),
        (HardNegatives(inner=VIEWS), True),
    ):
        assert needs_features(strategy) is expected
    assert HardNegatives(inner=Choice("voxel_correspondence")).traits.relates_points
    assert HardNegatives(inner=Choice("same_patient")).traits.signal_columns == ("patient",)
    with pytest.raises(AttributeError, match="AugmentedViews relates points and has no `num_points`"):
        num_points_of(AugmentedViews())


def test_no_strategy_of_the_package_has_an_old_attribute() -> None:
    old = {"informative", "informs", "companions", "passes_link_on", "within_scan", "constant_across"}
    old |= {"crosses_patients", "relates_points", "inner_draws_only"}
    for name in PAIRS.names():
        assert hasattr(PAIRS.get(name), "traits") and not old & set(dir(PAIRS.get(name))), name
