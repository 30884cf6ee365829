"""Two visits of one patient: attraction decreases with time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medcl3d.core.collection import Collection
from medcl3d.core.errors import DataError
from medcl3d.core.relation import Relation
from medcl3d.losses.contrastive import Tile, contrastive_sum
from medcl3d.pairs.longitudinal import Longitudinal
from medcl3d.pairs.placebo import placebo
from medcl3d.pairs.same_patient import SamePatient
from tests.pairs.collections import make_collection, visits
from tests.pairs.test_strategies import batch_of_views

cohorts = st.builds(make_collection, st.integers(0, 10_000), st.integers(2, 5).map(lambda n: 2 * n)).map(
    visits
)


@given(collection=cohorts, seed=st.integers(0, 1000), constant=st.floats(10, 1000))
def test_attraction_decays_with_the_days_between_visits(
    collection: Collection, seed: int, constant: float
) -> None:
    strategy = Longitudinal(time_constant_days=constant)
    keys = batch_of_views(strategy, collection, seed)
    relation = strategy.relate(keys, keys, None)
    same_sample = (keys.sample[:, None] == keys.sample) & (keys.view[:, None] != keys.view)
    days = collection.columns["session_days"][keys.scan.numpy()]
    expected = torch.from_numpy(np.exp(-np.abs(days[:, None] - days) / constant))
    torch.testing.assert_close(
        relation.positive[same_sample].double(), expected[same_sample], rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(relation.negative[same_sample], 1 - relation.positive[same_sample])
    same_patient = keys.patient[:, None] == keys.patient
    other_sample = keys.sample[:, None] != keys.sample
    assert (relation.positive[other_sample] == 0).all()
    assert (relation.negative[other_sample & same_patient] == 0).all(), (
        "other pairs of the patient are ignored"
    )
    assert (relation.negative[other_sample & ~same_patient] == 1).all()


@given(collection=cohorts, seed=st.integers(0, 1000))
def test_a_sample_is_two_visits_within_the_gap(collection: Collection, seed: int) -> None:
    days = collection.columns["session_days"]
    gaps = np.abs(days[0::2] - days[1::2])
    strategy = Longitudinal(max_gap_days=float(np.median(gaps)))
    anchors = strategy.anchors(collection).ids
    assert set(anchors // 2) == set(np.flatnonzero(gaps <= np.median(gaps)))
    first, second = strategy.sample(collection, int(anchors[0]), np.random.default_rng(seed))
    assert first.scan // 2 == second.scan // 2 and first.scan != second.scan


def test_other_modalities_are_not_visits() -> None:
    with pytest.raises(
        DataError,
        match=r"4 left out: its patient has no other visit in its modality\); give the visits of a patient",
    ):
        Longitudinal().anchors(make_collection(0, 4))


def test_a_collection_without_dates_is_an_error() -> None:
    collection = visits(make_collection(0, 4))
    columns = {name: values for name, values in collection.columns.items() if name != "session_days"}
    with pytest.raises(DataError, match=r"4 left out: it has no session_days\); add the column session_days"):
        Longitudinal().anchors(dataclasses.replace(collection, columns=columns))
    unknown = collection.with_columns({"session_days": np.array([0.0, np.nan, 5.0, 9.0])})
    anchors = Longitudinal().anchors(unknown)
    assert anchors.ids.tolist() == [2, 3]
    assert anchors.left_out == {
        "it has no session_days": 1,
        "its patient has no other visit in its modality": 1,
    }


@pytest.mark.parametrize("sessions", [None, "", np.nan, "1"])
def test_visits_are_distinguished_by_their_days(sessions: object) -> None:
    """Sessions may be empty, absent, or all have the default of a manifest without sessions."""
    collection = visits(make_collection(0, 6)).with_columns({"patient": np.array([0, 0, 0, 1, 1, 1])})
    days = np.array([0.0, 90, 90, 0, 0, np.nan])
    texts = pd.Series(["0", "90", "90", "0", "0", np.nan], dtype=object)  # as a store reads them
    table = collection.table.assign(session_days=texts, session=pd.Series([sessions] * 6, dtype=object))
    table = table.drop(columns="session") if sessions is None else table
    collection = dataclasses.replace(collection, table=table).with_columns({"session_days": days})
    assert [Longitudinal().partners(collection, scan).tolist() for scan in range(6)] == [
        [1, 2],
        [0],
        [0],
        [],
        [],
        [],
    ]
    assert Longitudinal().anchors(collection).ids.tolist() == [0, 1, 2]


def test_sessions_of_one_day_are_two_visits() -> None:
    collection = visits(make_collection(0, 4))
    days = np.zeros(4)
    table = collection.table.assign(session_days=days, session=["1", "2", "", "2"])
    collection = dataclasses.replace(collection, table=table).with_columns({"session_days": days})
    assert [Longitudinal().partners(collection, scan).tolist() for scan in range(4)] == [[1], [0], [], []]


def test_the_remedy_does_not_name_an_existing_column() -> None:
    collection = visits(make_collection(0, 4))
    table = collection.table.assign(session_days=0.0, session="1")
    collection = dataclasses.replace(collection, table=table).with_columns({"session_days": np.zeros(4)})
    with pytest.raises(
        DataError,
        match=r"give the visits of a patient different values of session_days or session, or choose",
    ):
        Longitudinal().anchors(collection)
    with pytest.raises(DataError, match=r"fill in the column session_days"):
        Longitudinal().anchors(collection.with_columns({"session_days": np.full(4, np.nan)}))


def test_views_without_days_are_ignored_within_a_sample() -> None:
    collection = visits(make_collection(0, 4)).with_columns({"session_days": np.full(4, np.nan)})
    keys = batch_of_views(SamePatient(), collection, 0)
    relation, same_patient = Longitudinal().relate(keys, keys, None), keys.patient[:, None] == keys.patient
    assert (relation.positive == 0).all() and torch.equal(relation.negative == 1, ~same_patient)


def test_a_gap_without_any_pair_is_an_error() -> None:
    with pytest.raises(DataError, match=r"no other visit in its modality within 0\.001 days"):
        Longitudinal(max_gap_days=0.001).anchors(visits(make_collection(0, 6)))


def test_a_placebo_permutes_days() -> None:
    collection = visits(make_collection(0, 20))
    shuffled = placebo(collection, Longitudinal(), 0)
    assert sorted(shuffled.columns["session_days"]) == sorted(collection.columns["session_days"])
    assert (shuffled.columns["session_days"] != collection.columns["session_days"]).mean() > 0.8


@given(collection=cohorts, seed=st.integers(0, 1000), constant=st.floats(10, 1000))
def test_with_two_visits_time_only_weights_samples(
    collection: Collection, seed: int, constant: float
) -> None:
    """An anchor with one positive attracts it equally at every gap; only the anchor's weight changes."""
    strategies = Longitudinal(time_constant_days=constant), Longitudinal(time_constant_days=1e12)
    keys = batch_of_views(strategies[0], collection, seed)
    z = torch.nn.functional.normalize(
        torch.randn(len(keys.sample), 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)),
        dim=1,
    )
    decayed, flat = (strategy.relate(keys, keys, None) for strategy in strategies)

    def one(relation: Relation, row: int) -> tuple[float, float]:
        rows = Relation(relation.positive[row : row + 1], relation.negative[row : row + 1])
        total = contrastive_sum(z[row : row + 1], z, lambda _rows, _similarity: Tile(rows), 0.1)
        return float(total.loss), float(total.weight)

    for row in range(len(z)):
        (loss, weight), (flat_loss, _) = one(decayed, row), one(flat, row)
        assert weight == pytest.approx(float(decayed.positive[row].sum()), rel=1e-6)
        # P and M = 1 - P are float32: their sum is 1 within 6e-8, and so is the denominator.
        assert loss == pytest.approx(weight * flat_loss, rel=1e-5, abs=1e-7)
