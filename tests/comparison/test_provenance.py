"""Compared runs must read the same data, checked part by part; other differences are noted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from medcl3d.comparison.analysis.provenance import check_provenance, other_precision
from medcl3d.comparison.plan.config import Command
from medcl3d.comparison.plan.runs import Run
from medcl3d.core.errors import DataError

READ: dict[str, Any] = {"data": "a", "body": "b", "manifest": {"age": "1", "sex": "2"}, "split": "s"}
MADE: dict[str, Any] = {
    "versions": {"torch": "2"},
    "python": "3",
    "commit": "f00",
    "dirty": False,
    "device": "one",
}
Finished = Callable[..., Run]


@pytest.fixture
def finished(tmp_path: Path) -> Finished:
    """Write a finished run with changed entries of its provenance.json (None: without the entry)."""

    def write(
        name: str, command: Command = "finetune", planned: dict[str, Any] | None = None, **changed: Any
    ) -> Run:
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
def test_different_data_of_two_runs_is_named(finished: Finished, other: dict[str, Any], words: str) -> None:
    runs = [finished("one"), finished("two"), finished("three", **other)]
    with pytest.raises(
        DataError,
        match=f"finetune/one and .*finetune/three read different data: {words}; prepare the data once",
    ):
        check_provenance(runs)
    assert check_provenance(runs[:2]) == []


def test_an_older_run_is_compared_by_its_recorded_parts(finished: Finished) -> None:
    old = finished("old", body=None, manifest=None, split=None, dirty=None, device=None)
    new, other = finished("new"), finished("other", split="x")
    assert check_provenance([old, new]) == check_provenance([old, other]) == []
    with pytest.raises(
        DataError, match=r"finetune/new and .*finetune/other read different data: split\.json"
    ):
        check_provenance([old, new, other])


def test_a_free_data_field_does_not_hide_a_change(finished: Finished) -> None:
    """Crops of another size, or of one modality, from a folder whose content has changed."""
    for number, free in enumerate(({"patch_size": [9, 9, 9]}, {"modalities": ["T1"]}, {"fold": 1})):
        runs = [finished(f"one {number}"), finished(f"two {number}", planned=free)]
        assert check_provenance(runs) == []
        changed = finished(f"three {number}", planned=free, split="x")
        with pytest.raises(DataError, match=r"read different data: split\.json"):
            check_provenance([*runs, changed])


def test_runs_of_other_folders_may_read_other_data(finished: Finished) -> None:
    there: dict[str, Any] = {"root": "there"}
    one, two = finished("one"), finished("two", planned=there, split="x", manifest={"site": "y"})
    assert check_provenance([one, two]) == []
    with pytest.raises(
        DataError, match=r"finetune/two and .*finetune/three read different data: the column site"
    ):
        check_provenance([one, two, finished("three", planned=there, split="x", manifest={"site": "z"})])


def test_allowed_differences_are_noted(finished: Finished) -> None:
    runs = [
        finished("one", "pretrain", manifest={"age": "1", "sex": "2", "site": "3"}, dirty=True),
        finished("two", "pretrain", device="two"),
        finished("old", "pretrain", manifest=None, device=None, dirty=None),
    ]
    assert check_provenance(runs) == [
        "Some runs of pretrain found columns in store that others did not find, and did not use: site.",
        "The runs used 2 different devices; see each run's provenance.json.",
        "1 of 3 runs used a checkout with uncommitted changes.",
    ]


def test_environments_before_a_resume_count_too(finished: Finished) -> None:
    """Before, the record of the first part of a run was lost when it resumed."""
    runs = [finished("one", earlier=[{**MADE, "device": "two", "dirty": True}]), finished("two")]
    assert check_provenance(runs) == [
        "The runs used 2 different devices; see each run's provenance.json.",
        "1 of 2 runs used a checkout with uncommitted changes.",
    ]


def test_arms_of_one_replicate_in_different_precisions_are_noted(finished: Finished) -> None:
    """As after a comparison was continued on a device without bfloat16."""
    runs = [finished("one", precision="bfloat16"), finished("two", precision="float32")]
    assert check_provenance(runs) == [
        "The runs used 2 different numerical precisions; see each run's provenance.json.",
        "In replicate 0 the arms do not share a numerical precision: their differences contain its effect.",
    ]
    assert check_provenance([runs[0], finished("three", precision="bfloat16")]) == []


def test_a_comparison_that_would_go_on_in_another_precision_warns(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, to_do = [finished("one", precision="bfloat16")], [finished("one, replicate 1", precision=None)]
    to_do = [replace(run, name="one") for run in to_do]
    monkeypatch.setattr("medcl3d.distributed.precision._natively", lambda device: "float32")
    assert other_precision(done, to_do) == [
        "warning: finetune: finished runs used bfloat16, and this device would use float32: continue on a "
        "device like the first, or set the precision"
    ]
    chosen = [replace(run, planned={"train": {"precision": "bfloat16"}}) for run in to_do]
    other_arm = [replace(run, name="two") for run in to_do]
    assert other_precision(done, chosen) == other_precision(done, other_arm) == []
    monkeypatch.setattr("medcl3d.distributed.precision._natively", lambda device: "bfloat16")
    assert other_precision(done, to_do) == []
