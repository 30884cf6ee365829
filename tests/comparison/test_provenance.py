"""Runs that are compared read the same: what differs is refused part by part, what may differ is noted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from medcl3d.comparison.config import Command
from medcl3d.comparison.plan import Run
from medcl3d.comparison.results import check_provenance
from medcl3d.errors import DataError

READ: dict[str, Any] = {"data": "a", "body": "b", "manifest": {"age": "1", "sex": "2"}, "split": "s"}
MADE: dict[str, Any] = {"versions": {"torch": "2"}, "python": "3", "commit": "f00", "dirty": False, "device": "one"}
Finished = Callable[..., Run]


@pytest.fixture
def finished(tmp_path: Path) -> Finished:
    """Writes a run that is done, with some of what stands in its provenance.json changed (None: it is not in there)."""

    def write(name: str, command: Command = "finetune", planned: dict[str, Any] | None = None, **changed: Any) -> Run:
        config = {"data": {"root": "store", "patch_size": [8, 8, 8], **(planned or {})}}
        run = Run(command, name, (), 0, Path("c.yaml"), (), tmp_path / command / name, None, config)
        run.folder.mkdir(parents=True)
        (run.folder / "config.yaml").write_text(yaml.safe_dump(config))
        (run.folder / "status.json").write_text(json.dumps({"state": "done"}))
        (run.folder / "results.json").write_text("{}")
        content = {name: value for name, value in {**READ, **MADE, **changed}.items() if value is not None}
        (run.folder / "provenance.json").write_text(json.dumps(content))
        return run

    return write


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"data": "x"}, "voxels, labels or geometry"),
        ({"body": "x"}, "the position of the body"),
        ({"manifest": {"age": "x", "sex": "2"}}, "the column age of manifest.csv"),
        ({"split": "x", "manifest": {"age": "1", "sex": "x"}}, "split.json, the column sex of manifest.csv"),
    ],
)
def test_what_two_runs_read_otherwise_is_named(finished: Finished, other: dict[str, Any], words: str) -> None:
    runs = [finished("one"), finished("two"), finished("three", **other)]
    with pytest.raises(DataError, match=f"finetune/one and .*finetune/three read different data: {words}; prepare it once"):
        check_provenance(runs)
    assert check_provenance(runs[:2]) == []


def test_a_run_of_before_is_held_against_what_it_has(finished: Finished) -> None:
    old = finished("old", body=None, manifest=None, split=None, dirty=None, device=None)
    new, other = finished("new"), finished("other", split="x")
    assert check_provenance([old, new]) == check_provenance([old, other]) == []
    with pytest.raises(DataError, match=r"finetune/new and .*finetune/other read different data: split\.json"):
        check_provenance([old, new, other])


def test_a_free_field_of_the_data_hides_no_change(finished: Finished) -> None:
    """Crops of another size, or one modality, of a folder whose content is another by now."""
    for number, free in enumerate(({"patch_size": [9, 9, 9]}, {"modalities": ["T1"]}, {"fold": 1})):
        runs = [finished(f"one {number}"), finished(f"two {number}", planned=free)]
        assert check_provenance(runs) == []
        changed = finished(f"three {number}", planned=free, split="x")
        with pytest.raises(DataError, match=r"read different data: split\.json"):
            check_provenance([*runs, changed])


def test_runs_that_are_to_read_other_folders_may_find_other_data(finished: Finished) -> None:
    there: dict[str, Any] = {"root": "there"}
    one, two = finished("one"), finished("two", planned=there, split="x", manifest={"site": "y"})
    assert check_provenance([one, two]) == []
    with pytest.raises(DataError, match=r"finetune/two and .*finetune/three read different data: the column site"):
        check_provenance([one, two, finished("three", planned=there, split="x", manifest={"site": "z"})])


def test_what_may_differ_is_noted(finished: Finished) -> None:
    runs = [
        finished("one", "pretrain", manifest={"age": "1", "sex": "2", "site": "3"}, dirty=True),
        finished("two", "pretrain", device="two"),
        finished("old", "pretrain", manifest=None, device=None, dirty=None),
    ]
    assert check_provenance(runs) == [
        "Of store, some runs of pretrain found columns that others did not, and so did not use: site.",
        "The runs were made with 2 different devices; see provenance.json of each.",
        "1 of 3 runs were made from a checkout with changes that are in no commit.",
    ]
