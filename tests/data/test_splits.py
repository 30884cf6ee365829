from __future__ import annotations

import json

import pandas as pd
import pytest

from medcl3d.data.splits import Split, draw_labelled, make_split, read_split, write_split
from medcl3d.errors import ConfigError, DataError


def table(num: int, labelled: int, split: str = "") -> pd.DataFrame:
    rows = [{"patient": f"{i:03d}", "label": "x" if i < labelled else "", "split": split} for i in range(num) for _ in range(2)]
    return pd.DataFrame(rows)


def test_patients_are_parted_with_the_same_fraction_with_and_without_labels() -> None:
    split = make_split(table(40, 12), test_fraction=0.25, seed=1)
    assert not set(split.train) & set(split.test) and len(split.train) + len(split.test) == 40
    assert len([p for p in split.test if int(p) < 12]) == 3 and len(split.test) == 10
    assert split == make_split(table(40, 12).sample(frac=1, random_state=0), test_fraction=0.25, seed=1)  # rows may come in any order
    assert split != make_split(table(40, 12), test_fraction=0.25, seed=2)


def test_the_manifest_has_the_last_word() -> None:
    given = table(4, 4)
    given["split"] = ["train", "train", "test", "test", "train", "train", "test", "test"]
    assert make_split(given, test_fraction=0.9, seed=0) == Split(("000", "002"), ("001", "003"))
    given.loc[1, "split"] = "test"
    with pytest.raises(DataError, match="in train and in test: 000"):
        make_split(given, test_fraction=0.9, seed=0)
    given.loc[:1, "split"] = ""
    with pytest.raises(DataError, match="have no split in the manifest: 000"):
        make_split(given, test_fraction=0.9, seed=0)


def test_validation_patients_train_nothing_and_leave_the_test_side_as_it_is(tmp_path) -> None:
    without, split = (make_split(table(40, 12), test_fraction=0.25, validation_fraction=f, seed=1) for f in (0.0, 0.2))
    assert split.test == without.test and set(split.train) | set(split.validation) == set(without.train)
    assert len(split.validation) == 8 and len([p for p in split.validation if int(p) < 12]) == 2
    assert set(split.held_out) == {*split.test, *split.validation}
    write_split(tmp_path / "split.json", split, 1)
    assert read_split(tmp_path / "split.json", table(40, 12)["patient"]) == split
    screening = split.measured_on("validation")
    assert screening.test == split.validation and screening.held_out == split.held_out and screening.train == split.train
    with pytest.raises(ConfigError, match="no validation patients; prepare the scans with validation_fraction"):
        without.measured_on("validation")


def test_the_manifest_may_name_validation_patients() -> None:
    given = table(3, 3)
    given["split"] = ["train", "train", "validation", "validation", "test", "test"]
    assert make_split(given, test_fraction=0.9, seed=0) == Split(("000",), ("002",), ("001",))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({"schema": 1, "train": ["a"], "test": ["b"], "validation": ["b", "c"]}, "in test and in validation: b"),
        ({"schema": 1, "train": ["a", "b"], "test": ["b", "c"]}, "in train and in test: b"),
        ({"schema": 1, "train": ["a"], "test": ["b", "c", "d"]}, "not in the store: d"),
        ({"schema": 1, "train": ["a"], "test": ["b"]}, "on no side: c"),
        ({"schema": 2, "train": ["a"], "test": ["b"]}, "schema is 2"),
        ({"schema": 1, "train": [1], "test": ["b"]}, "quotes"),
        ({"schema": 1, "train": ["a"]}, "test"),
    ],
)
def test_a_wrong_split_is_refused_with_its_ids(tmp_path, content, fault) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        read_split(path, ["a", "b", "c"])
    assert fault in str(caught.value)


def test_a_split_survives_the_disk(tmp_path) -> None:
    split = make_split(table(9, 9), test_fraction=0.25, seed=0)
    write_split(tmp_path / "split.json", split, 0)
    assert read_split(tmp_path / "split.json", table(9, 9)["patient"]) == split


def test_fewer_labelled_patients_are_a_part_of_more() -> None:
    split = Split(tuple(f"{i:02d}" for i in range(20)), ("99",))
    able = [*split.train[:10], "99"]
    few, more = draw_labelled(split, able, 3, 5), draw_labelled(split, able, 7, 5)
    assert len(few) == 3 and set(few) < set(more) <= set(able) - {"99"}
    with pytest.raises(ConfigError, match="10 patients with a label"):
        draw_labelled(split, able, 11, 5)


def test_few_labelled_patients_hold_their_share_of_each_class() -> None:
    split = Split(tuple(f"{i:02d}" for i in range(40)), ())
    strata = {patient: int(i % 4 == 0) for i, patient in enumerate(split.train)}  # ten of class 1
    before: set[str] = set()
    for num in (2, 4, 8, 20, 40):
        drawn = draw_labelled(split, split.train, num, 3, strata)
        assert abs(sum(strata[p] for p in drawn) - num / 4) <= 1 and before <= set(drawn)
        before = set(drawn)
    alike = dict.fromkeys(split.train, 0)
    assert draw_labelled(split, split.train, 7, 3, alike) == draw_labelled(split, split.train, 7, 3)
    assert len({draw_labelled(split, split.train, 7, seed, strata) for seed in range(5)}) == 5
