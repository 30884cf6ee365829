"""Large collections: results equal those of comparing each scan with all others, in linear time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcl3d.config.field_types import Choice
from medcl3d.core.collection import Collection
from medcl3d.pairs import PAIRS
from medcl3d.pairs.batch_grouping import BatchGrouping, batch_grouping_of
from medcl3d.pairs.cross_modality import CrossModality
from medcl3d.pairs.longitudinal import Longitudinal
from medcl3d.pairs.metadata_similarity import similarity_between
from medcl3d.pairs.placebo import placebo
from medcl3d.pairs.same_patient import SamePatient
from medcl3d.pairs.tabular_neighbours import TabularNeighbours
from tests.pairs.collections import make_collection
from tests.reference.partners import (
    arranged_loops,
    cross_modality_loops,
    longitudinal_loops,
    same_patient_loops,
    tabular_loops,
)

KERNELS: dict[str, float | str] = {"age": 2.0, "sex": "equal"}
PAIRED: list[tuple[Any, Callable[..., list[int]]]] = [
    *((SamePatient(same_session=which), same_patient_loops) for which in ("any", "only", "never")),  # type: ignore[arg-type]
    (Longitudinal(), longitudinal_loops),
    (Longitudinal(max_gap_days=300), longitudinal_loops),
    (CrossModality(), cross_modality_loops),
    (CrossModality(across_frames="body"), cross_modality_loops),
    (CrossModality(across_frames="body", modalities=("t1", "t2")), cross_modality_loops),
]


def mixed(seed: int, num_scans: int) -> Collection:
    """Patients with one to many scans, in random order, with missing values and shared frames."""
    rng = np.random.default_rng(seed)
    collection = make_collection(seed, num_scans)
    patient = rng.integers(0, max(1, num_scans // 3), num_scans)
    session, modality = rng.integers(0, 2, num_scans), rng.integers(0, 3, num_scans)
    table = collection.table.assign(
        patient=[f"p{p}" for p in patient],
        session=np.where(rng.random(num_scans) < 0.1, None, session.astype(str)),
        modality=[f"t{m}" for m in modality],
        frame=[
            f"f{p}{s}" if p % 2 else f"s{i}" for i, (p, s) in enumerate(zip(patient, session, strict=True))
        ],
        session_days=np.where(rng.random(num_scans) < 0.2, np.nan, 400.0 * session),
        age=np.where(rng.random(num_scans) < 0.2, np.nan, rng.choice([20.0, 30.0, 60.0, 61.0], num_scans)),
    ).replace({None: np.nan})
    made = Collection.of(table, collection.shapes, collection.affines, collection.body_boxes)
    return replace(made, patch_size=collection.patch_size)


mixtures = st.builds(mixed, st.integers(0, 10_000), st.integers(3, 24))


@pytest.mark.parametrize(
    ("strategy", "loops"), PAIRED, ids=lambda part: str(part)[:60] if not callable(part) else ""
)
@given(collection=mixtures, is_placebo=st.booleans())
def test_partners_and_anchors_are_those_of_comparing_all_with_all(
    strategy: Any, loops: Callable[..., list[int]], collection: Collection, is_placebo: bool
) -> None:
    collection = placebo(collection, strategy, 0) if is_placebo else collection
    expected = [loops(strategy, collection, scan) for scan in range(len(collection))]
    assert [strategy.partners(collection, scan).tolist() for scan in range(len(collection))] == expected
    if any(expected) and set(getattr(strategy, "modalities", None) or ()) <= set(
        collection.table["modality"]
    ):
        assert strategy.anchors(collection).ids.tolist() == [
            scan for scan, found in enumerate(expected) if found
        ]


@given(
    collection=mixtures,
    k=st.integers(1, 3),
    combine=st.sampled_from(["product", "mean"]),
    on_missing=st.sampled_from(["ignore", "drop"]),
    is_placebo=st.booleans(),
)
def test_tabular_neighbours_are_those_of_comparing_all_with_all(
    collection: Collection, k: int, combine: Any, on_missing: Any, is_placebo: bool
) -> None:
    strategy = TabularNeighbours(columns=KERNELS, k=k, combine=combine, on_missing=on_missing)
    collection = placebo(collection, strategy, 0) if is_placebo else collection
    everyone = np.arange(len(collection))
    alike = similarity_between(collection, everyone, everyone, KERNELS, combine, on_missing)
    for scan in everyone:
        chosen, weights = strategy.neighbours(collection, scan)
        assert chosen.tolist() == tabular_loops(collection, scan, alike[scan], k)
        assert weights.tolist() == alike[scan][chosen].tolist()


@pytest.mark.parametrize("combine", ["product", "mean"])
def test_anchors_among_many_scans_are_those_with_a_neighbour(combine: Any) -> None:
    """More scans than one block, and bandwidths so narrow that many scans have no neighbour."""
    collection = mixed(1, 400)
    strategy = TabularNeighbours(columns={"age": 0.01, "session_days": 0.01}, k=2, combine=combine)
    expected = [scan for scan in range(400) if len(strategy.neighbours(collection, scan)[0])]
    assert strategy.anchors(collection).ids.tolist() == expected and 0 < len(expected) < 400


@given(
    seed=st.integers(0, 10_000),
    num=st.integers(2, 20),
    group_size=st.integers(2, 4),
    classes=st.integers(1, 6),
)
def test_groups_are_drawn_as_from_lists(seed: int, num: int, group_size: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    labels, patients = rng.integers(0, classes, num), rng.integers(0, num, num)
    order = rng.permutation(num)[: max(1, num - 2)]

    def affinity(scan: int) -> np.ndarray:
        return np.exp(-np.abs(labels - labels[scan])) * (labels % 3 == labels[scan] % 3)

    found = BatchGrouping(group_size, affinity, patients).arranged(order, np.random.default_rng(seed))
    assert found.tolist() == arranged_loops(
        order, group_size, affinity, patients, np.random.default_rng(seed)
    )


def cohort(num_scans: int) -> Collection:
    """Two visits in two modalities per patient, with one geometry, which is fast to create."""
    small = make_collection(0, 4)
    number = np.arange(num_scans)
    table = small.table.iloc[number % 4].reset_index(drop=True)
    table = table.assign(
        scan=[f"s{i}" for i in number],
        patient=[f"p{i // 4}" for i in number],
        session=(number // 2 % 2).astype(str),
        session_days=365.0 * (number // 2 % 2),
        frame=[f"s{i}" for i in number],
        age=20 + (number // 4 * 7.3) % 60,
        sex=np.where(number // 4 % 2, "F", "M"),
    )
    made = Collection.of(
        table, small.shapes[number % 4], small.affines[number % 4], small.body_boxes[number % 4]
    )
    return replace(made, patch_size=small.patch_size)


GROWING = [
    Choice("same_patient", {"same_session": "never"}),
    Choice("longitudinal"),
    Choice("cross_modality", {"across_frames": "body", "modalities": ("t1", "t2")}),
    Choice("tabular_neighbours", {"columns": {"age": 5.0, "sex": "equal"}}),
]


class Counted(np.ndarray):
    """A column that counts the elements of operations on it: a measure of time without a clock."""

    elements = 0

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        plain = [part.view(np.ndarray) if isinstance(part, Counted) else part for part in inputs]
        Counted.elements += max(np.broadcast(*plain).size, 1)
        kwargs = {
            name: tuple(o.view(np.ndarray) for o in value) if name == "out" else value
            for name, value in kwargs.items()
        }
        return getattr(ufunc, method)(*plain, **kwargs)


def elements_met(choice: Choice, num_scans: int) -> int:
    made = cohort(num_scans)
    collection = made.with_columns({name: values.view(Counted) for name, values in made.columns.items()})
    strategy, Counted.elements = PAIRS.build(choice), 0
    anchors = strategy.anchors(collection).ids
    assert len(anchors) == num_scans
    return Counted.elements


def test_the_element_counter_detects_a_quadratic_strategy() -> None:
    made = cohort(400)
    patient, Counted.elements = made.columns["patient"].view(Counted), 0
    assert [int((patient == patient[scan]).sum()) for scan in range(400)] == [4] * 400
    assert Counted.elements >= 400 * 400


@pytest.mark.parametrize("choice", GROWING, ids=lambda choice: choice.name)
def test_the_cost_of_anchors_is_linear_in_scans(choice: Choice) -> None:
    few, many = elements_met(choice, 512), elements_met(choice, 2048)
    assert many <= 6 * few, (
        "four times the scans need four times the work; comparing all with all would need sixteen times"
    )


@pytest.mark.slow
@pytest.mark.parametrize("choice", GROWING, ids=lambda choice: choice.name)
def test_anchors_of_twenty_thousand_scans(choice: Choice) -> None:
    assert elements_met(choice, 20_000) < 400 * 20_000


@pytest.mark.slow
def test_an_epoch_of_twenty_thousand_scans_with_groups() -> None:
    collection = cohort(20_000)
    companions = batch_grouping_of(
        PAIRS.build(Choice("metadata_kernel", {"columns": KERNELS, "group_size": 2})), collection
    )
    assert companions is not None
    order = companions.arranged(np.random.default_rng(0).permutation(20_000), np.random.default_rng(0))
    sex = collection.columns["sex"][order].reshape(-1, 2)
    assert set(order.tolist()) == set(range(20_000)) and (sex[:, 0] == sex[:, 1]).mean() > 0.99
