"""Fingerprints name the part of the data that changed: a column, the split, voxels or the body."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medcl3d.preprocessing.options import PrepareOptions
from medcl3d.preprocessing.prepare import prepare
from medcl3d.store.fingerprints import ALWAYS_READ, changed, fingerprints
from medcl3d.store.store import Store


@pytest.fixture
def root(cohort: Path, tmp_path: Path) -> Path:
    """Six scans of three patients, with the columns site and age."""
    prepare("csv", cohort, tmp_path / "out", options=PrepareOptions(workers=1))
    return tmp_path / "out"


def rewritten(old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        text = (root / "manifest.csv").read_text()
        assert old in text
        (root / "manifest.csv").write_text(text.replace(old, new))

    return change


def appended(name: str, value: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        head, *rows = (root / "manifest.csv").read_text().splitlines()
        (root / "manifest.csv").write_text(
            "\n".join([f"{head},{name}", *(f"{row},{value}" for row in rows)]) + "\n"
        )

    return change


def swapped_sides(root: Path) -> None:
    split = json.loads((root / "split.json").read_text())
    (root / "split.json").write_text(json.dumps({**split, "train": split["test"], "test": split["train"]}))


def with_folds(root: Path) -> None:
    split = json.loads((root / "split.json").read_text())
    folds = [split["test"], *([patient] for patient in split["train"])]
    (root / "split.json").write_text(json.dumps({**split, "folds": folds}))


def described(**fields: Any) -> Callable[[Path], None]:
    """Change fields of a scan's description."""

    def change(root: Path) -> None:
        path = root / "store" / "003.json"
        about = json.loads(path.read_text())
        path.write_text(
            json.dumps(
                {
                    **about,
                    **{
                        name: {**about[name], **v} if isinstance(v, dict) else v for name, v in fields.items()
                    },
                }
            )
        )

    return change


CHANGES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "an age": (rewritten(",EU,42", ",EU,43"), ["the column age of manifest.csv"]),
    "an age that is missing": (rewritten(",EU,42", ",EU,n/a"), ["the column age of manifest.csv"]),
    "a site": (rewritten(",NA,40", ",US,40"), ["the column site of manifest.csv"]),
    "a patient": (rewritten("001,000,", "001,001,"), ["the column patient of manifest.csv"]),
    "a class": (appended("class", "sick"), ["the column class of manifest.csv"]),
    "days between visits": (appended("session_days", "7"), ["the column session_days of manifest.csv"]),
    "test patients": (swapped_sides, ["split.json"]),
    "folds": (with_folds, ["split.json"]),
    "voxels": (described(stored_sha256="0" * 64), ["voxels, labels or geometry"]),
    "the atlas": (
        described(body={"from_world": [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]}),
        ["the position of the body"],
    ),
    "the body": (described(body={"box": [[1, 1, 1], [5, 5, 5]]}), ["the position of the body"]),
    "nothing": (lambda _: None, []),
    "an age written differently": (rewritten(",EU,42", ",EU,42.0"), []),
    "the path of a file": (rewritten("images/3", "moved/3"), []),
    "a new column": (appended("scanner", "A"), []),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_named(what: str, root: Path) -> None:
    change, parts = CHANGES[what]
    before, stored = fingerprints(Store.open(root)), Store.open(root).fingerprint()
    change(root)
    now = fingerprints(Store.open(root))
    assert changed(before, now) == changed(now, before) == parts
    assert (now["data"] == before["data"] == stored) == ("voxels, labels or geometry" not in parts)


def test_moving_or_preparing_again_does_not_change_fingerprints(
    root: Path, cohort: Path, tmp_path: Path
) -> None:
    before = fingerprints(Store.open(root))
    shutil.move(root, tmp_path / "elsewhere")
    assert fingerprints(Store.open(tmp_path / "elsewhere")) == before
    prepare("csv", cohort, tmp_path / "again", options=PrepareOptions(workers=1))
    assert fingerprints(Store.open(tmp_path / "again")) == before
    assert {*ALWAYS_READ, "age", "site"} == set(before["manifest"]), "neither paths nor the side of the split"


def test_the_scale_of_stored_integers_is_data(root: Path) -> None:
    before = Store.open(root).fingerprint()
    prints = []
    for factor in (0.5, 0.25):
        described(scaling=[factor, 0.0])(root)
        prints.append(Store.open(root).fingerprint())
    assert len({before, *prints}) == 3


def test_an_older_run_is_compared_by_its_voxels_only(root: Path) -> None:
    now = fingerprints(Store.open(root))
    assert changed({"data": now["data"]}, now) == [] == changed(now, {"data": now["data"]})
    assert changed({"data": "other"}, now) == ["voxels, labels or geometry"] == changed({}, now)
