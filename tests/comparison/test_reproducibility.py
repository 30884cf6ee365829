"""Reproducibility section: provenance entries are counted over all runs."""

from __future__ import annotations

from pathlib import Path

from medcl3d.comparison.plan.runs import Run
from medcl3d.comparison.report.reproducibility import provenance_entries
from medcl3d.io.atomic import write_json


def runs_of(folder: Path, *noted: dict) -> list[Run]:
    runs = [
        Run("pretrain", f"r{number}", (), 0, Path("x.yaml"), (), folder / str(number), None, {})
        for number in range(len(noted))
    ]
    for run, content in zip(runs, noted, strict=True):
        run.folder.mkdir()
        write_json(
            run.folder / "provenance.json", {"kind": "pretrain", "command": ["x", str(run.folder)], **content}
        )
    return runs


def test_all_commits_are_named_with_their_number_of_runs(tmp_path: Path) -> None:
    first, *others = provenance_entries(
        runs_of(tmp_path, {"commit": "f00"}, {"commit": "bar"}, {"commit": "f00", "dirty": False})
    )
    assert first.name == "commit of medcl3d" and first.values == (("f00", 2), ("bar", 1))
    assert not others, "entries that no run recorded, as the device, are left out"


def test_a_changed_working_tree_is_named_with_its_commit(tmp_path: Path) -> None:
    (commit,) = provenance_entries(
        runs_of(tmp_path, {"commit": "f00", "dirty": True}, {"commit": "f00", "dirty": False})
    )
    assert commit.values == (("f00, with uncommitted changes", 1), ("f00", 1))


def test_other_entries_are_shown_unchanged(tmp_path: Path) -> None:
    noted = {
        "versions": {"torch": "2", "numpy": "1"},
        "device": "a GPU",
        "threads": 2,
        "precision": "bfloat16",
    }
    found = {
        one.name: one.values
        for one in provenance_entries(runs_of(tmp_path, noted, {**noted, "device": "a CPU"}, {}))
    }
    assert found["packages"] == (("torch 2, numpy 1", 2), ("not recorded", 1))
    assert found["device"] == (("a GPU", 1), ("a CPU", 1), ("not recorded", 1)) and found["threads"] == (
        ("2", 2),
        ("not recorded", 1),
    )


def test_hashes_of_patient_metadata_stay_in_the_run_folder(tmp_path: Path) -> None:
    (data,) = provenance_entries(
        runs_of(tmp_path, {"data": "d", "body": "b", "split": "s", "manifest": {"sex": "5f", "age": "2d"}})
    )
    assert (data.name, data.values) == ("hash of the scans", (("d", 1),))
