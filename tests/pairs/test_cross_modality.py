"""Two modalities of one session, at corresponding positions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcl3d.core.collection import Collection
from medcl3d.core.errors import DataError
from medcl3d.pairs.cross_modality import CrossModality
from medcl3d.pairs.placebo import placebo
from tests.pairs.collections import make_collection, one_session
from tests.pairs.test_same_patient import one_frame
from tests.pairs.test_strategies import batch_of_views

sessions = st.builds(make_collection, st.integers(0, 10_000), st.integers(2, 5).map(lambda n: 2 * n)).map(
    one_session
)


@given(collection=sessions, seed=st.integers(0, 1000))
def test_a_sample_is_one_position_in_two_modalities_of_a_session(collection: Collection, seed: int) -> None:
    collection = one_frame(collection)
    strategy = CrossModality()
    keys = batch_of_views(strategy, collection, seed)
    first, second = keys[keys.view == 0], keys[keys.view == 1]
    assert (first.patient == second.patient).all() and (first.modality != second.modality).all()
    voxel = collection.spacings[first.scan.numpy()]
    apart = np.einsum(
        "ni,nij->nj", (first.center_mm - second.center_mm).numpy(), collection.axes[first.scan.numpy()]
    )
    assert (np.abs(apart) <= voxel / 2 + 1e-6).all()
    relation = strategy.relate(keys, keys, None)
    other_patient = keys.patient[:, None] != keys.patient
    assert (relation.negative[other_patient] == 1).all() and (relation.positive[other_patient] == 0).all()


def test_another_frame_is_refused_unless_across_frames_is_body() -> None:
    collection = one_session(make_collection(0, 4))
    with pytest.raises(
        DataError,
        match=r"4 left out: its session's other modalities have another frame\); set across_frames: body",
    ):
        CrossModality().anchors(collection)
    assert CrossModality(across_frames="body").anchors(collection).ids.tolist() == [0, 1, 2, 3]


def test_scans_without_a_partner_are_counted_by_reason() -> None:
    collection = one_frame(one_session(make_collection(0, 6)))
    frames = collection.columns["frame"].copy()
    frames[3] = 99
    table = collection.table.assign(
        modality=["CT", "PET", "CT", "PET", "CT", "MR"], session=["1", "1", "1", "1", "1", "1"]
    )
    codes = table["modality"].map({"CT": 0, "MR": 1, "PET": 2}).to_numpy()
    mixed = dataclasses.replace(collection, table=table).with_columns({"frame": frames, "modality": codes})
    anchors = CrossModality(modalities=("CT", "PET")).anchors(mixed)
    assert anchors.ids.tolist() == [0, 1]
    assert anchors.left_out == {
        "its modality is not one of CT, PET": 1,
        "its session has no other modality": 1,
        "its session's other modalities have another frame": 2,
    }


def test_an_unknown_modality_is_an_error() -> None:
    with pytest.raises(DataError, match="no scan has the modality PET; choose from t1, t2"):
        CrossModality(modalities=("t1", "PET")).anchors(make_collection(0, 4))


def test_other_sessions_do_not_pair() -> None:
    """The remedy is not `across_frames`, which would have no effect."""
    with pytest.raises(
        DataError,
        match=r"4 left out: its session has no other modality\); check the columns session and modality",
    ):
        CrossModality(across_frames="body").anchors(make_collection(0, 4))


def test_a_placebo_permutes_the_modality() -> None:
    collection = one_session(make_collection(0, 40))
    shuffled = placebo(collection, CrossModality(), 0)
    assert (shuffled.columns["modality"] != collection.columns["modality"]).any()
    assert np.array_equal(shuffled.columns["patient"], collection.columns["patient"])
