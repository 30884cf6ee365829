"""An archive of a comparison's runs gives the same report, and nothing of the machine that ran them."""

from __future__ import annotations

import json
import lzma
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from medcl3d.comparison.compare import compare
from medcl3d.comparison.run.archive import unpack
from medcl3d.core.errors import ConfigError, DataError

REPORTED = ("results.md", "conclusion.json")


def test_an_archive_gives_the_same_tables_and_figures(
    comparison: Callable[..., Path], tmp_path: Path
) -> None:
    path = comparison(replicates=2)
    compare(path, pack_to=Path("study.jsonl.xz"))
    report = Path("runs")
    found = {name: (report / name).read_text() for name in REPORTED}
    figures = {file.name: file.read_text() for file in (report / "figures").iterdir()}
    rows = pd.read_csv(report / "results.csv").drop(columns="folder")
    assert "curve.svg" in figures and len(rows) == 12
    shutil.rmtree("runs")

    compare(path, from_runs=[Path("study.jsonl.xz")])
    assert {name: (report / name).read_text() for name in REPORTED} == found
    assert {file.name: file.read_text() for file in (report / "figures").iterdir()} == figures
    pd.testing.assert_frame_equal(pd.read_csv(report / "results.csv").drop(columns="folder"), rows)
    content = lzma.decompress(Path("study.jsonl.xz").read_bytes()).decode()
    assert str(tmp_path) not in content and socket.gethostname() not in content.split('"')

    # Packed again from what was unpacked, it is the same.
    compare(path, from_runs=[Path("study.jsonl.xz")], pack_to=Path("again.jsonl.xz"))
    assert Path("again.jsonl.xz").read_bytes() == Path("study.jsonl.xz").read_bytes()


def test_a_restored_comparison_runs_only_what_is_missing(comparison: Callable[..., Path]) -> None:
    path = comparison(replicates=2)
    compare(path)
    expected = Path("runs/results.md").read_text()
    shutil.rmtree("runs/finetune/simclr/num_labelled=8/seed_1")
    compare(path, from_runs=[Path("runs")], pack_to=Path("rows.jsonl.xz"))
    declared = Path("runs/preregistration.jsonl").read_text()
    shutil.rmtree("runs")

    compare(path, restore_from=Path("rows.jsonl.xz"))
    assert Path("runs/results.md").read_text() == expected
    assert Path("runs/preregistration.jsonl").read_text() == declared
    assert not list(Path("runs/unpacked").iterdir())
    # An archive has no weights, so the pretraining of the missing run is repeated, and no other.
    repeated = [file.parent for file in Path("runs").rglob("encoder.safetensors")]
    assert repeated == [Path("runs/pretrain/simclr/seed_1")]

    changed = {file: file.stat().st_mtime_ns for file in Path("runs").rglob("results.json")}
    compare(path, ["out_dir=elsewhere"], restore_from=Path("rows.jsonl.xz"))
    again = Path("elsewhere/finetune/scratch").rglob("results.json")
    assert sorted(file.read_bytes() for file in again) == sorted(
        file.read_bytes() for file in Path("runs/finetune/scratch").rglob("results.json")
    )

    compare(path, restore_from=Path("rows.jsonl.xz"))
    assert {file: file.stat().st_mtime_ns for file in changed} == changed


def test_an_archive_records_that_results_were_set_aside(comparison: Callable[..., Path]) -> None:
    """Else a report of it would test what the original refuses to test."""
    path = comparison(replicates=1)
    compare(path)
    for folder in list(Path("runs/finetune").rglob("seed_0")):
        shutil.copytree(folder, folder.with_name("seed_0_of_5_steps"))
    compare(path, pack_to=Path("a.jsonl.xz"))
    folder = unpack(Path("a.jsonl.xz"), Path("there"))
    aside = sorted(file.parent.relative_to(folder) for file in folder.rglob("seed_0_of_*/results.json"))
    assert aside == sorted(file.relative_to("runs") for file in Path("runs").rglob("seed_0_of_5_steps"))
    compare(path, from_runs=[Path("a.jsonl.xz")], pack_to=Path("again.jsonl.xz"))
    assert Path("again.jsonl.xz").read_bytes() == Path("a.jsonl.xz").read_bytes()
    shutil.rmtree("runs")
    compare(path, restore_from=Path("a.jsonl.xz"))
    assert len(list(Path("runs").rglob("seed_0_of_5_steps/results.json"))) == len(aside) == 6


def test_measurements_of_a_shorter_pretraining_are_left_out(comparison: Callable[..., Path]) -> None:
    """Also of runs that a relative path names, as in the documented commands."""
    compare(comparison(replicates=2), pack_to=Path("rows.jsonl.xz"))
    longer = comparison(replicates=2, pretrain={"train.steps": 9})
    for place in (Path("runs"), Path("runs").resolve(), Path("rows.jsonl.xz")):
        compare(longer, ["out_dir=elsewhere"], from_runs=[place])
        rows = pd.read_csv("elsewhere/results.csv")
        assert set(rows["arm"]) == {"scratch"}, place
        assert "does not have all planned steps" in Path("elsewhere/results.md").read_text()
        shutil.rmtree("elsewhere")


def test_the_folder_of_a_report_from_an_archive_is_read_too(comparison: Callable[..., Path]) -> None:
    path = comparison(replicates=2)
    compare(path, pack_to=Path("rows.jsonl.xz"))
    compare(path, from_runs=[Path("rows.jsonl.xz")])
    compare(path, from_runs=[Path("runs")])  # which has unpacked/ now


def test_archives_of_one_name_are_read_together(comparison: Callable[..., Path]) -> None:
    path = comparison(replicates=2)
    compare(path)
    expected = Path("runs/results.md").read_text()
    for seed in (0, 1):
        shutil.copytree("runs", f"part{seed}")
        for folder in list(Path(f"part{seed}").rglob(f"seed_{1 - seed}")):
            shutil.rmtree(folder)
        compare(path, from_runs=[Path(f"part{seed}")], pack_to=Path(f"{seed}/rows.jsonl.xz"))
    shutil.rmtree("runs")
    compare(path, from_runs=[Path("0/rows.jsonl.xz"), Path("1/rows.jsonl.xz")])
    assert Path("runs/results.md").read_text() == expected


def test_a_pretrained_run_is_not_taken_for_one_from_scratch(comparison: Callable[..., Path]) -> None:
    arms = {"scratch": {}, "simclr": {"pretraining": "simclr", "set": {"gain": 0.05}}}
    compare(comparison(replicates=1, arms=arms), pack_to=Path("a.jsonl.xz"))
    arms["simclr"] = {"set": {"gain": 0.05}}
    with pytest.raises(ConfigError, match="holds another run: init"):
        compare(comparison(replicates=1, arms=arms), from_runs=[Path("a.jsonl.xz")])


def test_an_archive_has_only_the_cases_of_declared_metrics(comparison: Callable[..., Path]) -> None:
    path = comparison(replicates=1)
    compare(path, pack_to=Path("a.jsonl.xz"))
    folder = unpack(Path("a.jsonl.xz"), Path("there"))
    for packed in folder.rglob("results.json"):
        whole = json.loads((Path("runs") / packed.relative_to(folder)).read_text())
        kept = json.loads(packed.read_text())
        assert kept["metrics"] == whole["metrics"] and len(kept["cases"]) == len(whole["cases"])
        assert all(set(case) <= {"scan", "patient", "class", "dice"} for case in kept["cases"])
    assert not list(folder.rglob("*.safetensors"))


def test_damaged_and_dangerous_archives_are_refused(comparison: Callable[..., Path]) -> None:
    path = comparison(replicates=1)
    with pytest.raises(ConfigError, match=r"--pack rows.csv: not the name of an archive; use a name"):
        compare(path, pack_to=Path("rows.csv"))
    assert not Path("runs").exists()
    Path("bad.jsonl.xz").write_bytes(b"no")
    with pytest.raises(DataError, match=r"bad.jsonl.xz.*not an archive of runs"):
        compare(path, from_runs=[Path("bad.jsonl.xz")])
    line = json.dumps({"folder": "../..", "files": {"x.txt": "a"}}).encode()
    Path("out.jsonl.xz").write_bytes(lzma.compress(line))
    with pytest.raises(DataError, match="names a path outside the archive"):
        compare(path, from_runs=[Path("out.jsonl.xz")])
    assert not list(Path().resolve().parent.glob("x.txt"))
