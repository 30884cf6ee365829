"""Tests are preregistered before the runs; a change after results is reported, and then nothing is tested."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medcl3d.comparison.compare import compare
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.preregistration import (
    PREREGISTRATION,
    check_preregistration,
    preregister,
    preregistrations,
)
from medcl3d.config.loading import load
from medcl3d.core.errors import ConfigError, DataError

SIX = {
    "arms": {"scratch": {}, "gain": {"set": {"gain": 0.1}}},
    "pretrainings": {},
    "replicates": 6,
    "jobs": 2,
}


def test_preregistered_endpoints_are_tested_and_changed_ones_are_not(
    comparison: Callable[..., Path], tmp_path: Path
) -> None:
    path = comparison(**SIX, endpoint={"num_labelled": 2})
    text = compare(path).read_text()
    assert "p (Holm)" in text and "The tests were" not in text
    rows = preregistrations(Path("runs") / PREREGISTRATION)
    assert [(row["finished"], row["complete"]) for row in rows] == [(0, 0)]
    assert rows[0]["what"]["endpoint"] == [{"num_labelled": 2}] and rows[0]["what"]["replicates"] == 6
    assert "p (Holm)" in compare(path, ["jobs=1"]).read_text()
    for again in range(2):
        text = compare(path, ["endpoint={num_labelled: 8}"]).read_text()
        assert "p (Holm)" not in text, again
        assert "No test: endpoint: [{" in text and "was changed when 24 measurements were finished" in text
        assert "No test, since the preregistered tests were changed after results existed" in text
    assert "p (Holm)" in compare(path).read_text(), "the first declaration is still tested"
    shutil.move("runs", tmp_path / "other")
    assert "p (Holm)" in compare(path, from_runs=[Path("other")]).read_text()
    assert "was changed" in compare(path, ["reference=gain"], from_runs=[Path("other/finetune")]).read_text()
    (tmp_path / "other" / PREREGISTRATION).unlink()
    assert (
        "The tests were not preregistered: preregistration.jsonl does not exist."
        in compare(path, from_runs=[Path("other")]).read_text()
    )


MEASURED = ["dice", "hd95_mm"]


@pytest.fixture
def config(comparison: Callable[..., Path]) -> CompareConfig:
    return load(comparison(**SIX), [], CompareConfig)


@pytest.mark.parametrize(("complete", "kept"), [(3, True), (6, False)])
def test_a_pilot_may_be_made_longer_and_a_tested_comparison_may_not(
    config: CompareConfig, complete: int, kept: bool
) -> None:
    preregister(replace(config, replicates=complete), 0, 0)
    preregister(config := replace(config, replicates=10), complete * 4, complete)
    found = check_preregistration(config, preregistrations(config.report_dir / PREREGISTRATION), MEASURED)
    assert found.kept is kept
    assert ("replicates: 6 -> 10 was changed when 24 measurements" in found.note) is not kept


@pytest.mark.parametrize(
    ("numbers", "kept"),
    [
        ([(3, 0), (4, 3), (10, 4)], True),
        ([(3, 0), (10, 3), (20, 10)], False),  # added after a test
        ([(10, 0), (6, 5)], False),  # fewer after a look
        ([(10, 0), (20, 5), (12, 5)], False),
    ],
)
def test_replicates_may_only_be_added_and_only_before_a_test(
    config: CompareConfig, numbers: list[tuple[int, int]], kept: bool
) -> None:
    for replicates, complete in numbers:
        changed = replace(config, replicates=replicates)
        preregister(changed, complete * 4, complete)
    rows = preregistrations(config.report_dir / PREREGISTRATION)
    assert check_preregistration(changed, rows, MEASURED).kept is kept
    later = replace(config, replicates=30)
    assert not check_preregistration(later, rows, MEASURED).kept, "not in the file"


def test_results_of_an_earlier_plan_count_as_seen(config: CompareConfig) -> None:
    """With other cells or seeds, none of the present plan's measurements is finished."""
    preregister(config, 0, 0)
    for number in range(3):
        folder = config.out_dir / "finetune" / "scratch" / f"seed_{number}"
        folder.mkdir(parents=True)
        (folder / "results.json").write_text("{}")
    changed = replace(config, metric="hd95_mm", first_seed=10)
    preregister(changed, 0, 0)
    rows = preregistrations(config.report_dir / PREREGISTRATION)
    assert [row["finished"] for row in rows] == [0, 3]
    found = check_preregistration(changed, rows, MEASURED)
    assert not found.kept and "was changed when 3 measurements were finished" in found.note


def test_results_that_were_reported_and_deleted_count_as_seen(config: CompareConfig) -> None:
    preregister(config, 0, 0)
    config.report_dir.mkdir(parents=True, exist_ok=True)
    (config.report_dir / "results.csv").write_text("arm,seed,dice\nscratch,0,0.5\nscratch,1,0.6\n")
    changed = replace(config, metric="hd95_mm")
    preregister(changed, 0, 0)
    rows = preregistrations(config.report_dir / PREREGISTRATION)
    assert [row["finished"] for row in rows] == [0, 2]
    assert not check_preregistration(changed, rows, MEASURED).kept


def test_folds_are_declared(config: CompareConfig) -> None:
    preregister(config, 0, 0)
    rows = preregistrations(config.report_dir / PREREGISTRATION)
    found = check_preregistration(replace(config, folds=3), rows, MEASURED)
    assert not found.kept and "folds" in found.note


def test_a_change_before_any_result_is_allowed(config: CompareConfig) -> None:
    preregister(replace(config, metric="hd95_mm"), 0, 0)
    preregister(config, 0, 0)
    rows = preregistrations(config.report_dir / PREREGISTRATION)
    assert (
        len(rows) == 2
        and check_preregistration(config, rows, MEASURED).kept
        and not check_preregistration(config, rows, MEASURED).note
    )


def test_a_misspelt_metric_ends_the_execution_at_the_first_result_and_can_be_corrected(
    comparison: Callable[..., Path],
) -> None:
    path = comparison(**{**SIX, "jobs": 1})
    with pytest.raises(
        DataError, match=r"has no number for 'dice/livr', which is misspelt or undefined .*: dice, hd95_mm$"
    ):
        compare(path, ["metric=dice/livr"])
    assert len(list(Path("runs").rglob("results.json"))) == 1
    with pytest.raises(DataError, match="'dice/livr'"):
        compare(path, ["metric=dice/livr"])
    assert len(list(Path("runs").rglob("results.json"))) == 1, (
        "existing results are validated before any run starts"
    )
    text = compare(path).read_text()
    assert (
        "p (Holm)" in text and "The tests were preregistered when 1 measurement was already finished" in text
    )


def test_a_value_that_is_not_defined_is_named_and_its_replicate_left_out(
    comparison: Callable[..., Path],
) -> None:
    path = comparison(**SIX)
    compare(path)
    file = next(iter(sorted(Path("runs/finetune/gain").rglob("seed_3/results.json"))))
    results = json.loads(file.read_text())
    results["metrics"]["dice"]["mean"] = None
    file.write_text(json.dumps(results))
    with (file.parent / "metrics.jsonl").open("a") as rows:
        rows.write('{"step": 9, "los')  # truncated, as by a full disk
    text = compare(path).read_text()
    assert f"dice is not defined in {file.parent}" in text and "5 of 6 replicates complete" in text
    assert (
        "No test, since 1 of 6 planned replicates is missing, and only a complete comparison is tested"
        in text
    )
    compare(path, ["replicates=10"], check=True)


def test_runs_before_the_preregistration_are_noted(config: CompareConfig) -> None:
    preregister(config, 5, 1)
    found = check_preregistration(config, preregistrations(config.report_dir / PREREGISTRATION), MEASURED)
    assert (
        found.kept and found.note == "The tests were preregistered when 5 measurements were already finished."
    )


def test_a_former_file_is_read_and_kept(config: CompareConfig) -> None:
    preregister(config, 0, 0)
    file = config.report_dir / PREREGISTRATION
    former = file.rename(file.with_name("declared.jsonl"))
    text = former.read_text()
    assert len(preregistrations(file)) == 1
    preregister(config, 5, 1)
    assert not file.exists(), "nothing changed"
    changed = replace(config, margin=0.3)
    preregister(changed, 5, 1)
    assert [row["finished"] for row in preregistrations(file)] == [0, 5] and former.read_text() == text
    assert len(file.read_text().splitlines()) == 2
    assert not check_preregistration(changed, preregistrations(file), MEASURED).margin_kept


def test_spoilt_rows_are_left_out(config: CompareConfig) -> None:
    preregister(config, 0, 0)
    file = config.report_dir / PREREGISTRATION
    file.write_text(
        '{"cut\n[]\n' + file.read_text() + json.dumps({"what": 3, "finished": 0, "complete": 0}) + "\n"
    )
    assert len(preregistrations(file)) == 1


def test_validation_patients_cannot_confirm(
    comparison: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from medcl3d.comparison.plan import runs as module

    real = module.plain

    def on_validation(config: Any) -> dict[str, Any]:
        return {**real(config), "measured_on": "validation"}

    monkeypatch.setattr(module, "plain", on_validation)
    words = "a confirmation measures on test patients, not on validation patients; set `stage: screen`"
    with pytest.raises(ConfigError, match=rf"compare\.yaml: stage: {words}"):
        compare(comparison(), check=True)
    compare(comparison(stage="screen"), check=True)


@pytest.mark.parametrize(("replicates", "kept"), [(5, True), (6, False)])
def test_more_steps_after_a_testable_number_of_results_leave_nothing_to_test(
    config: CompareConfig, replicates: int, kept: bool
) -> None:
    preregister(config, 0, 0)
    rows = preregistrations(config.report_dir / PREREGISTRATION)
    found = check_preregistration(config, rows, MEASURED, range(replicates))
    assert found.kept is kept
    assert found.note == ("" if kept else "No test: train.steps was raised after 6 replicates were measured.")
