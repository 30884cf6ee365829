"""Summary before a comparison runs: time from its own runs only, and the smallest detectable difference."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.runs import plan
from medcl3d.comparison.plan_summary import plan_summary
from medcl3d.comparison.run.execute import execute
from medcl3d.comparison.run.launch import COST, record_cost
from medcl3d.comparison.run.local import LocalLauncher
from medcl3d.comparison.run.timing import samples_per_s, seconds_to_go
from medcl3d.config.loading import load
from medcl3d.io.json_file import read_record
from medcl3d.io.progress import duration
from tests.comparison.test_execute import SMALL, go


def planned(path: Path, *overrides: str):
    config = load(path, overrides, CompareConfig)
    return config, plan(config)


def log(run, rates) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"step": k, "samples_per_s": rate}) for k, rate in enumerate(rates, 1)]
    (run.folder / "metrics.jsonl").write_text("\n".join([*rows, '{"step": 9, "sam']))


def test_time_is_unknown_until_something_was_timed(comparison):
    config, runs = planned(comparison(), *SMALL)
    assert seconds_to_go("pretrain", runs, []) is None
    assert "time unknown, estimated after the first steps" in plan_summary(runs, config)[0]
    log(runs[0], [1.0, 4.0, 4.0, 6.0])
    assert samples_per_s(runs[0]) == 4.0  # the first row is warm-up, and the last is truncated
    assert runs[0].size == 20
    assert seconds_to_go("pretrain", runs, []) == pytest.approx(2 * 20 / 4)
    assert seconds_to_go("finetune", runs, []) is None
    assert "; about 10 s, estimated from logged steps" in plan_summary(runs, config)[0]


def test_finished_runs_give_better_estimates_than_steps(comparison):
    _, runs = planned(comparison(), *SMALL)
    log(runs[0], [4.0, 4.0])
    record_cost(runs[0].folder, 30.0, 100.0)
    record_cost(runs[0].folder, 10.0, 50.0)
    assert read_record(runs[0].folder / COST) == {"seconds": 40.0, "peak_memory_mib": 100.0}
    assert seconds_to_go("pretrain", runs, runs[:1]) == pytest.approx(40.0)


def test_each_pretraining_is_timed_by_its_own_runs(comparison):
    """MAE may take ten times as long as the contrast that started first."""
    _, runs = planned(comparison(), "replicates=3")
    of = {
        name: [run for run in runs if run.command == "pretrain" and run.name == name]
        for name in ("dense", "simclr")
    }
    for run in (of["dense"][0], of["simclr"][0]):
        run.folder.mkdir(parents=True)
    record_cost(of["dense"][0].folder, 10.0, 100.0)
    assert seconds_to_go("pretrain", runs, of["dense"][:1]) == pytest.approx(5 * 10), (
        "a pretraining without runs uses the mean of all"
    )
    record_cost(of["simclr"][0].folder, 120.0, 100.0)
    assert seconds_to_go("pretrain", runs, [of["dense"][0], of["simclr"][0]]) == pytest.approx(
        2 * 10 + 2 * 120
    )
    log(of["simclr"][1], [1.0, of["simclr"][1].size / 60])
    assert seconds_to_go("pretrain", runs, of["dense"][:1]) == pytest.approx(2 * 10 + 3 * 60), (
        "steps of a running run"
    )


@pytest.mark.slow
def test_a_wrong_time_estimate_is_replaced(comparison, monkeypatch):
    monkeypatch.setattr("medcl3d.comparison.run.timing.WRONG_FROM", 1.0)
    arms = {"scratch": {"set": {"seconds": 0.3}}, "dense": {"pretraining": "dense", "set": {"seconds": 3.0}}}
    _, _, said = go(comparison(arms=arms), *SMALL, "replicates=2")
    lines = [line for line in said.splitlines() if line.startswith("finetune: about")]
    assert len([line for line in lines if "estimated from finished runs" in line]) >= 2, said


def test_runs_record_their_cost_and_report_the_remaining_time(comparison):
    path = comparison(arms={"scratch": {}, "dense": {"pretraining": "dense", "set": {"seconds": 0.6}}})
    runs, _, said = go(path, *SMALL)
    for run in runs:
        cost = read_record(run.folder / COST)
        assert cost["seconds"] >= (0.6 if run.name == "dense" and run.measures else 0)
        assert cost["peak_memory_mib"] > 1
    assert "finetune: about" in said and "1 run, estimated from finished runs" in said


def test_durations_are_readable():
    assert [duration(s) for s in (40, 720, 12600)] == ["40 s", "12 min", "3.5 hours"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["replicates=3"], "3 replicates: intervals and no test"),
        (["replicates=10"], "at level 0.05 / 2: 1.14 standard deviations"),
        (["replicates=10", "family=[simclr]"], "at level 0.05 / 1: 1.00 standard deviations"),
        (["replicates=10", "stage=screen"], "nothing is tested"),
    ],
)
def test_the_smallest_difference_before_any_run(comparison, overrides, words):
    config, runs = planned(comparison(), *overrides)
    assert words in plan_summary(runs, config)[-1]


def test_a_pilot_gives_the_smallest_difference_in_the_metric(comparison):
    path = comparison()
    config, runs = planned(path, "replicates=2")
    execute(runs, LocalLauncher(2), Console(file=io.StringIO()))
    rng = np.random.default_rng(0)
    for run in runs:  # the fake commands have no noise
        if run.measures:
            results = read_record(run.folder / "results.json")
            for case in results["cases"]:
                case["dice"] += float(rng.normal(0, 0.05))
            results["metrics"]["dice"]["mean"] = float(np.mean([case["dice"] for case in results["cases"]]))
            (run.folder / "results.json").write_text(json.dumps(results))
    config, runs = planned(path, "replicates=10")
    line = plan_summary(runs, config)[-1]
    assert "10 replicates detect with about 80% power" in line
    assert "in dice, from the variances of the 2 complete replicates and 9 test patients" in line
    limit = "with the replicate variance at its upper 80% limit"
    assert f"{limit} (at its estimate, which is below the true variance in most small pilots: " in line
    cautious, plain = (
        float(text.split()[0]) for text in (line.split("0.05 / 2: ")[1], line.split("small pilots: ")[1])
    )
    assert cautious > 1.5 * plain > 0
