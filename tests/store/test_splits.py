from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcl3d.core.errors import ConfigError, DataError
from medcl3d.store.splits import (
    Split,
    make_folds,
    make_split,
    moved_patients,
    read_previous_split,
    read_split,
    select_labelled,
    with_previous_sides,
    write_split,
)


def table(num: int, labelled: int, split: str = "") -> pd.DataFrame:
    rows = [
        {"patient": f"{i:03d}", "label": "x" if i < labelled else "", "split": split}
        for i in range(num)
        for _ in range(2)
    ]
    return pd.DataFrame(rows)


def test_patients_with_and_without_labels_are_split_with_the_same_fraction() -> None:
    split = make_split(table(40, 12), test_fraction=0.25, seed=1)
    assert not set(split.train) & set(split.test) and len(split.train) + len(split.test) == 40
    assert len([p for p in split.test if int(p) < 12]) == 3 and len(split.test) == 10
    shuffled = table(40, 12).sample(frac=1, random_state=0)
    assert split == make_split(shuffled, test_fraction=0.25, seed=1)
    assert split != make_split(table(40, 12), test_fraction=0.25, seed=2)


def test_patients_without_labels_may_all_train() -> None:
    drawn, split = (
        make_split(table(40, 12), test_fraction=0.25, validation_fraction=0.2, seed=1, unlabelled=unlabelled)
        for unlabelled in ("split", "train")
    )
    for side, before in ((split.test, drawn.test), (split.validation, drawn.validation)):
        assert set(side) == {patient for patient in before if int(patient) < 12} < set(before)
    assert {f"{i:03d}" for i in range(12, 40)} <= set(split.train)
    none = table(40, 0)
    assert len(make_split(none, test_fraction=0.25, seed=1, unlabelled="train").test) == 10


def test_a_split_in_the_manifest_takes_precedence() -> None:
    given = table(4, 4)
    given["split"] = ["train", "train", "test", "test", "train", "train", "test", "test"]
    assert make_split(given, test_fraction=0.9, seed=0) == Split(("000", "002"), ("001", "003"))
    given.loc[1, "split"] = "test"
    with pytest.raises(DataError, match="in train and in test: 000"):
        make_split(given, test_fraction=0.9, seed=0)
    given.loc[:1, "split"] = ""
    with pytest.raises(DataError, match="have no split in the manifest: 000"):
        make_split(given, test_fraction=0.9, seed=0)


def test_validation_patients_are_not_trained_on_and_do_not_change_the_test_side(tmp_path) -> None:
    without, split = (
        make_split(table(40, 12), test_fraction=0.25, validation_fraction=f, seed=1) for f in (0.0, 0.2)
    )
    assert split.test == without.test and set(split.train) | set(split.validation) == set(without.train)
    assert len(split.validation) == 8 and len([p for p in split.validation if int(p) < 12]) == 2
    assert set(split.held_out) == {*split.test, *split.validation}
    write_split(tmp_path / "split.json", split, 1)
    assert read_split(tmp_path / "split.json", table(40, 12)["patient"]) == split
    screening = split.measured_on("validation")
    assert (
        screening.test == split.validation
        and screening.held_out == split.held_out
        and screening.train == split.train
    )
    with pytest.raises(
        ConfigError, match="no validation patients; prepare the scans with validation_fraction"
    ):
        without.measured_on("validation")


def test_the_manifest_can_name_validation_patients() -> None:
    given = table(3, 3)
    given["split"] = ["train", "train", "validation", "validation", "test", "test"]
    assert make_split(given, test_fraction=0.9, seed=0) == Split(("000",), ("002",), ("001",))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (
            {"schema": 1, "train": ["a"], "test": ["b"], "validation": ["b", "c"]},
            "in test and in validation: b",
        ),
        ({"schema": 1, "train": ["a", "b"], "test": ["b", "c"]}, "in train and in test: b"),
        ({"schema": 1, "train": ["a"], "test": ["b", "c", "d"]}, "not in the store: d"),
        ({"schema": 1, "train": ["a"], "test": ["b"]}, "have no side: c"),
        ({"schema": 2, "train": ["a"], "test": ["b"]}, "schema is 2"),
        ({"schema": 1, "train": [1], "test": ["b"]}, "quotes"),
        ({"schema": 1, "train": ["a"]}, "test"),
        (
            {"schema": 1, "train": ["a", "b"], "test": ["c"], "folds": [["c", "a"], ["a", "b"]]},
            "in fold 0 and in fold 1: a",
        ),
        ({"schema": 1, "train": ["a", "b"], "test": ["c"], "folds": [["c"], ["a"]]}, "1 differ: b"),
        (
            {"schema": 1, "train": ["a"], "test": ["c"], "validation": ["b"], "folds": [["c"], ["a", "b"]]},
            "in fold 1 and in validation: b",
        ),
        ({"schema": 1, "train": ["a", "b"], "test": ["c"], "folds": [["a", "b", "c"]]}, "two or more folds"),
        (
            {"schema": 1, "train": ["a", "b"], "test": ["c"], "folds": [["a", "b", "c"], []]},
            "two or more folds",
        ),
        ({"schema": 1, "train": ["a", "b"], "test": ["c"], "folds": ["abc"]}, "lists of patient ids"),
    ],
)
def test_an_invalid_split_is_refused_with_its_ids(tmp_path, content, fault) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        read_split(path, ["a", "b", "c"])
    assert fault in str(caught.value)


def test_a_split_round_trips_through_its_file(tmp_path) -> None:
    split = make_split(table(9, 9), test_fraction=0.25, seed=0)
    write_split(tmp_path / "split.json", split, 0)
    assert read_split(tmp_path / "split.json", table(9, 9)["patient"]) == split


def test_fewer_labelled_patients_are_a_subset_of_more() -> None:
    split = Split(tuple(f"{i:02d}" for i in range(20)), ("99",))
    labelled = [*split.train[:10], "99"]
    few, more = select_labelled(split, labelled, 3, 5), select_labelled(split, labelled, 7, 5)
    assert len(few) == 3 and set(few) < set(more) <= set(labelled) - {"99"}
    with pytest.raises(ConfigError, match="10 patients with a label"):
        select_labelled(split, labelled, 11, 5)


def test_few_labelled_patients_are_proportional_to_the_classes() -> None:
    split = Split(tuple(f"{i:02d}" for i in range(40)), ())
    strata = {patient: int(i % 4 == 0) for i, patient in enumerate(split.train)}  # ten of class 1
    before: set[str] = set()
    for num in (2, 4, 8, 20, 40):
        drawn = select_labelled(split, split.train, num, 3, strata)
        assert abs(sum(strata[p] for p in drawn) - num / 4) <= 1 and before <= set(drawn)
        before = set(drawn)
    one_class = dict.fromkeys(split.train, 0)
    assert select_labelled(split, split.train, 7, 3, one_class) == select_labelled(split, split.train, 7, 3)
    assert len({select_labelled(split, split.train, 7, seed, strata) for seed in range(5)}) == 5


cohorts = st.tuples(st.integers(0, 30), st.integers(0, 30)).filter(lambda counts: sum(counts) >= 8)


@given(counts=cohorts, folds=st.integers(2, 6), fraction=st.sampled_from([0.0, 0.2]), seed=st.integers(0, 99))
def test_every_patient_is_in_one_test_fold_and_trained_on_in_the_others(
    counts: tuple[int, int], folds: int, fraction: float, seed: int
) -> None:
    labelled, unlabelled = counts
    manifest = table(labelled + unlabelled, labelled)
    split = make_folds(manifest, folds=folds, seed=seed, validation_fraction=fraction)
    patients = set(manifest["patient"])
    assert sorted([*(p for fold in split.folds for p in fold), *split.validation]) == sorted(patients)
    assert len(split.validation) == round(fraction * labelled) + round(fraction * unlabelled)
    for has_label in (True, False):
        sizes = [sum((int(p) < labelled) == has_label for p in fold) for fold in split.folds]
        assert max(sizes) - min(sizes) <= 1
    totals = [len(fold) for fold in split.folds]
    assert max(totals) - min(totals) <= 1
    for number in range(folds):
        one = split.of_fold(number)
        assert one.test == split.folds[number] and set(one.train) == patients - set(one.held_out)
        assert set(one.held_out) == {*one.test, *split.validation} and one.validation == split.validation
    assert split.of_fold(None) == split == split.of_fold(0)
    assert split == make_folds(manifest[::-1], folds=folds, seed=seed, validation_fraction=fraction)


@given(folds=st.integers(2, 5), seed=st.integers(0, 99))
def test_fewer_labelled_patients_of_a_fold_are_a_subset_of_more(folds: int, seed: int) -> None:
    split = make_folds(table(30, 20), folds=folds, seed=seed)
    strata = {f"{i:03d}": i % 3 for i in range(20)}
    for number in range(folds):
        one, before = split.of_fold(number), set[str]()
        for num in (1, 2, 5, 9):
            drawn = set(select_labelled(one, list(strata), num, seed, strata))
            assert before <= drawn and not drawn & set(one.test) and len(drawn) == num
            before = drawn


def test_folds_round_trip_and_a_split_without_folds_has_no_entry_for_them(tmp_path) -> None:
    split, path = make_folds(table(9, 4), folds=3, seed=0), tmp_path / "split.json"
    write_split(path, split, 0)
    assert read_split(path, table(9, 9)["patient"]) == split
    content = json.loads(path.read_text())
    assert (
        list(content) == ["schema", "seed", "train", "test", "folds"]
        and content["test"] == content["folds"][0]
    )
    write_split(path, make_split(table(9, 4), test_fraction=0.25, seed=0), 0)
    assert list(json.loads(path.read_text())) == ["schema", "seed", "train", "test"]
    with pytest.raises(
        ConfigError, match=r"data\.fold = 0: the split has no folds; prepare the scans with folds=5"
    ):
        read_split(path, table(9, 9)["patient"]).of_fold(0)
    with pytest.raises(ConfigError, match=r"data\.fold = 3: the split has the folds 0 to 2"):
        split.of_fold(3)


def test_impossible_folds_are_refused() -> None:
    with pytest.raises(DataError, match="folds = 5: there are only 4 patients"):
        make_folds(table(4, 4), folds=5, seed=0)
    with pytest.raises(DataError, match="column split already defines the sides"):
        make_folds(table(4, 4, "train"), folds=2, seed=0)


def with_sides(table: pd.DataFrame) -> Split:
    return make_split(table, test_fraction=0.25, validation_fraction=0.2, seed=1)


def with_folds(table: pd.DataFrame) -> Split:
    return make_folds(table, folds=3, seed=1)


@pytest.mark.parametrize("make", [with_sides, with_folds])
def test_patients_keep_their_previous_side(make: Callable[[pd.DataFrame], Split]) -> None:
    manifest = table(40, 12)
    before, drawn, more = make(manifest), make(manifest[manifest["patient"] != "000"]), make(table(50, 12))
    assert moved_patients(before, drawn), "another set of patients gives another draw"
    for new in (drawn, more):
        kept = with_previous_sides(new, before)
        assert not moved_patients(before, kept)
        assert sorted(p for part in kept.parts.values() for p in part) == sorted(
            p for part in new.parts.values() for p in part
        )
        assert len(kept.folds) == len(before.folds) and set(kept.test) <= set(kept.held_out)


def test_folds_that_were_removed_by_hand_are_drawn_again() -> None:
    drawn = with_folds(table(40, 12))
    assert with_previous_sides(drawn, Split(drawn.train, drawn.test)) == drawn


def test_a_side_that_would_be_empty_is_drawn_again() -> None:
    before, drawn = Split(("a", "b", "c"), ("d",)), Split(("a", "b"), ("c",))
    assert with_previous_sides(drawn, before) == drawn
    assert moved_patients(before, drawn) == [("c", "train", "test")]


def test_the_options_of_a_draw_are_stored_with_the_split(tmp_path: Path) -> None:
    path, split = tmp_path / "split.json", Split(("a", "b"), ("c",))
    assert read_previous_split(path) is None
    write_split(path, split, 0)
    assert read_previous_split(path) == (split, None)
    write_split(path, split, 0, {"seed": 0, "folds": None})
    assert read_previous_split(path) == (split, {"seed": 0, "folds": None})
    path.write_text('{"train": ["a"], "te')
    assert read_previous_split(path) is None
