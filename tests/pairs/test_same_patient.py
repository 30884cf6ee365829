"""Two scans of one patient, at corresponding positions."""

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
from medcl3d.core.geometry import ViewSpec
from medcl3d.pairs.boxes import random_box, start_at
from medcl3d.pairs.placebo import placebo
from medcl3d.pairs.same_patient import SamePatient
from tests.pairs.collections import make_collection
from tests.pairs.test_strategies import batch_of_views

patients = st.builds(make_collection, st.integers(0, 10_000), st.integers(2, 6).map(lambda n: 2 * n))


def one_frame(collection: Collection) -> Collection:
    """The same scans, with one grid and one frame per patient."""
    first = np.arange(len(collection)) // 2 * 2
    moved = dataclasses.replace(
        collection,
        affines=collection.affines[first],
        shapes=collection.shapes[first],
        body_boxes=collection.body_boxes[first],
    )
    return moved.with_columns({"frame": first})


@given(collection=patients, seed=st.integers(0, 1000))
def test_a_sample_has_two_scans_of_one_patient(collection: Collection, seed: int) -> None:
    for position in ("matched", "free"):
        strategy = SamePatient(position=position)  # type: ignore[arg-type]
        first, second = strategy.sample(collection, 2, np.random.default_rng(seed))
        assert first.scan == 2 and second.scan == 3


@given(collection=patients, seed=st.integers(0, 1000), jitter=st.floats(0, 10))
def test_positions_are_matched_in_a_common_frame(collection: Collection, seed: int, jitter: float) -> None:
    collection = one_frame(collection)
    views = SamePatient(jitter_mm=jitter).sample(collection, 0, np.random.default_rng(seed))
    keys = collection.keys(views, np.zeros(2), np.arange(2))
    apart = np.abs((keys.center_mm[1] - keys.center_mm[0]).numpy() @ collection.axes[0])
    assert (apart <= np.sqrt(3) * jitter + collection.spacings[0] / 2 + 1e-6).all()


@given(collection=patients, seed=st.integers(0, 1000))
def test_positions_are_matched_in_body_coordinates_across_frames(collection: Collection, seed: int) -> None:
    first, second = SamePatient().sample(collection, 0, np.random.default_rng(seed))
    matched = collection.corresponding_point(0, second.scan, first.box.center)
    in_body = collection.body.place(np.array([second.scan]), matched[None])[0]
    assert np.allclose(in_body, collection.keys([first], np.zeros(1), np.zeros(1)).body[0].numpy())
    start, missed_mm = start_at(collection, second.scan, matched)
    assert tuple(start) == second.box.start
    if missed_mm == 0:
        rest = collection.keys([second], np.zeros(1), np.zeros(1)).center_mm[0].numpy() - matched
        assert (
            np.abs(rest @ collection.axes[second.scan]) <= collection.spacings[second.scan] / 2 + 1e-6
        ).all()


@given(collection=patients, seed=st.integers(0, 1000), jitter=st.floats(0, 10))
def test_matched_positives_are_within_the_sample_and_other_crops_of_the_patient_are_ignored(
    collection: Collection, seed: int, jitter: float
) -> None:
    keys = batch_of_views(SamePatient(jitter_mm=jitter), collection, seed)
    relation = SamePatient(jitter_mm=jitter).relate(keys, keys, None)
    other = ~keys.same_item(keys)
    same_sample = (keys.sample[:, None] == keys.sample) & other
    same_patient = keys.patient[:, None] == keys.patient
    assert torch.equal(relation.positive == 1, same_sample) and set(relation.positive.unique().tolist()) <= {
        0,
        1,
    }
    assert (relation.negative[same_patient] == 0).all() and (relation.negative[~same_patient] == 1).all()


@given(collection=patients, seed=st.integers(0, 1000))
def test_free_positives_are_all_crops_of_the_patient(collection: Collection, seed: int) -> None:
    strategy = SamePatient(position="free")
    keys = batch_of_views(strategy, collection, seed)
    relation, same_patient = strategy.relate(keys, keys, None), keys.patient[:, None] == keys.patient
    assert torch.equal(relation.positive == 1, same_patient & ~keys.same_item(keys))
    assert torch.equal(relation.negative == 1, ~same_patient)


def test_a_sample_of_two_patients_from_another_part_of_a_sum_does_not_attract() -> None:
    views = [
        ViewSpec(scan, random_box(make_collection(0, 4), scan, np.random.default_rng(0))) for scan in (0, 2)
    ]
    keys = make_collection(0, 4).keys(views, np.zeros(2), np.arange(2))
    relation = SamePatient().relate(keys, keys, None)
    assert relation.positive.tolist() == [[0, 0], [0, 0]] and relation.negative.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("empty", [np.nan, None, ""])
@pytest.mark.parametrize(("same_session", "partners"), [("any", [1, 2, 3]), ("only", []), ("never", [])])
def test_an_empty_session_is_unknown(empty: object, same_session: str, partners: list[int]) -> None:
    collection = make_collection(0, 4).with_columns({"patient": np.zeros(4, dtype=np.int64)})
    table = collection.table.assign(patient="p", session=pd.Series([empty, empty, "1", "2"], dtype=object))
    strategy, collection = (
        SamePatient(same_session=same_session),
        dataclasses.replace(collection, table=table),
    )  # type: ignore[arg-type]
    assert strategy.partners(collection, 0).tolist() == partners
    assert (
        strategy.partners(collection, 2).tolist()
        == {"any": [0, 1, 3], "only": [], "never": [3]}[same_session]
    )


@pytest.mark.parametrize(("same_session", "partners"), [("any", [1, 2]), ("only", [2]), ("never", [1])])
def test_same_session_restricts_the_partner(same_session: str, partners: list[int]) -> None:
    collection = make_collection(0, 3)
    table = collection.table.assign(patient="p", session=["1", "2", "1"])
    collection = dataclasses.replace(collection, table=table).with_columns(
        {"patient": np.zeros(3, dtype=np.int64)}
    )
    assert SamePatient(same_session=same_session).partners(collection, 0).tolist() == partners  # type: ignore[arg-type]


@pytest.mark.parametrize(("sessions", "noted"), [(["1"] * 3, True), (["1", "2", "1"], False)])
def test_a_single_session_of_all_scans_is_noted(sessions: list[str], noted: bool) -> None:
    collection = make_collection(0, 3)
    table = collection.table.assign(patient="p", session=sessions)
    collection = dataclasses.replace(collection, table=table).with_columns(
        {"patient": np.zeros(3, dtype=np.int64)}
    )
    notes = SamePatient(same_session="only").anchors(collection).notes
    assert bool(notes) is noted and all("same_session = only has no effect" in note for note in notes)
    assert not SamePatient().anchors(collection).notes


def test_one_scan_per_patient_is_an_error_with_a_remedy() -> None:
    collection = make_collection(0, 4)
    single_scans = collection.with_columns({"patient": np.arange(4)})
    with pytest.raises(
        DataError, match=r"4 left out: its patient has no other scan\); choose overlapping_crops"
    ):
        SamePatient().anchors(single_scans)


@pytest.mark.parametrize(
    ("same_session", "words"),
    [("never", "no other scan in another session"), ("only", "no other scan in the same session")],
)
def test_sessions_without_any_pair_are_an_error(same_session: str, words: str) -> None:
    collection = make_collection(0, 4).with_columns({"patient": np.zeros(4, dtype=np.int64)})
    sessions = ["1"] * 4 if same_session == "never" else list("1234")
    table = collection.table.assign(patient="p", session=sessions)
    with pytest.raises(DataError, match=words):
        SamePatient(same_session=same_session).anchors(dataclasses.replace(collection, table=table))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no column session; add it, or set any"):
        SamePatient(same_session=same_session).anchors(
            dataclasses.replace(collection, table=table.drop(columns="session"))
        )  # type: ignore[arg-type]


def test_patients_with_one_scan_are_left_out_and_counted() -> None:
    anchors = SamePatient().anchors(make_collection(0, 5))
    assert anchors.ids.tolist() == [0, 1, 2, 3] and anchors.left_out.total() == 1


def test_a_placebo_pairs_scans_of_different_patients() -> None:
    collection = make_collection(0, 40)
    shuffled = placebo(collection, SamePatient(), seed=0)
    truth = collection.columns["patient"]
    rng = np.random.default_rng(0)
    drawn = [SamePatient().sample(shuffled, int(a), rng) for a in SamePatient().anchors(shuffled).ids]
    assert np.mean([truth[a.scan] == truth[b.scan] for a, b in drawn]) < 0.2


def test_a_placebo_attracts_other_patients_at_the_matched_position_and_repels_the_patients_own_scans() -> (
    None
):
    collection = one_frame(make_collection(0, 40))
    shuffled, truth = (
        placebo(collection, SamePatient(), seed=0),
        torch.from_numpy(collection.columns["patient"]),
    )
    keys = batch_of_views(SamePatient(), shuffled, 0, count=60)
    relation, own = SamePatient().relate(keys, keys, None), truth[keys.scan]
    stranger = own[:, None] != own
    assert float(stranger[relation.positive == 1].double().mean()) > 0.8
    assert (
        float((relation.negative == 1)[~stranger & (keys.scan[:, None] != keys.scan)].double().mean()) > 0.5
    )
