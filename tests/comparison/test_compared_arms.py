"""Incomplete arms: which are compared, over which replicates, and what the tests of the others become."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from medcl3d.comparison.analysis.analyse import analyse
from medcl3d.comparison.analysis.compared_arms import compared_arms, failed_arms, incomplete_arms, runs_of
from medcl3d.comparison.analysis.incomplete_runs import IncompleteRun
from medcl3d.comparison.analysis.results import complete_replicates
from medcl3d.comparison.plan.config import Arm
from medcl3d.comparison.plan.runs import Run
from tests.comparison.test_analysis import config_of, table_of

CONFIG = config_of(
    replicates=6,
    arms={"scratch": Arm(), "a": Arm("p"), "b": Arm("q"), "mae": Arm("mae")},
    family=("a", "b"),
    margin=0.2,
)


def table(**missing: list[int]) -> pd.DataFrame:
    """Measurements of six replicates, without those of some arms."""
    rows = table_of(CONFIG, 6, {"a": 0.03, "b": 0.01})
    gone = [rows["arm"].eq(arm) & rows["seed"].isin(seeds) for arm, seeds in missing.items()]
    return rows[~pd.concat(gone, axis=1).any(axis=1)] if gone else rows


@pytest.mark.parametrize(
    ("missing", "doubtful", "arms", "seeds"),
    [
        ({}, (), "scratch a b mae", 6),
        ({"mae": [0, 1, 2, 3, 4, 5]}, ("mae",), "scratch a b", 6),
        ({"mae": [5]}, ("mae",), "scratch a b", 6),  # an automatic control excludes no replicate
        ({"b": [3]}, ("b",), "scratch a mae", 6),  # failed in one replicate: it is left out
        ({"b": [5], "mae": [5]}, ("mae",), "scratch a b mae", 5),  # not run yet: the replicate is excluded
        ({"a": [0, 1], "b": [0], "mae": [0, 1]}, ("a", "b", "mae"), "scratch b", 5),
        ({"a": [0, 1, 2], "b": [3, 4, 5]}, ("mae",), "scratch a mae", 3),  # nothing in common
        ({"scratch": [0, 1, 2, 3, 4, 5]}, (), "", 0),
    ],
)
def test_the_compared_arms_and_their_replicates(
    missing: dict[str, list[int]], doubtful: tuple[str, ...], arms: str, seeds: int
) -> None:
    found = compared_arms(table(**missing), CONFIG, doubtful)
    assert list(found.arms) == arms.split()
    assert found.family == ("a", "b")
    assert len(complete_replicates(table(**missing), found)) == seeds


def test_the_rest_of_the_family_keeps_its_tests_and_their_adjustment() -> None:
    whole = analyse(table(), CONFIG)
    compared = compared_arms(table(b=[1]), CONFIG, {"b"})
    left = analyse(table(b=[1]), compared)
    assert whole is not None and left is not None
    one, other = whole.arm("a"), left.arm("a")
    assert other.test is not None and one.test is not None and other.equivalence is not None
    assert other.test.t == one.test.t and other.endpoint == one.endpoint
    assert other.test.holm == pytest.approx(2 * other.test.t), "Holm over the declared two arms"
    only = analyse(table(b=[1]), replace(compared, family=("a",)))
    assert only is not None and only.arm("a").equivalence is not None
    alone = only.arm("a").equivalence
    assert alone is not None and alone.adjusted is not None
    assert other.equivalence.adjusted == pytest.approx(2 * alone.adjusted)
    assert left.family == ("a", "b") and [arm.name for arm in left.arms] == ["scratch", "a", "mae"]


def test_reasons_are_grouped_by_their_replicates() -> None:
    def run(command: str, name: str, seed: int, needs: str | None = None) -> Run:
        at = Path(command, name, str(seed))
        return Run(command, name, (), seed, at, (), at, needs and Path(needs), {})  # type: ignore[arg-type]

    diverged = "DataError: training diverged: the loss is nan at step 11"
    missing = [
        *(IncompleteRun(run("pretrain", "q", seed), "failed", diverged) for seed in range(3)),
        *(
            IncompleteRun(run("finetune", "b", seed, f"pretrain/q/{seed}"), "not started", "waits")
            for seed in (0, 1, 2)
        ),
        IncompleteRun(run("finetune", "mae", 4, "pretrain/mae/4"), "not started", "the same command runs it"),
    ]
    rows = table(b=[0, 1, 2], mae=[4])
    assert failed_arms(missing, CONFIG) == {"b"}
    compared = compared_arms(rows, CONFIG, {"b", "mae"})
    b, mae = incomplete_arms(rows, CONFIG, compared, {"mae"}, missing)
    assert (b.name, b.complete, b.compared, b.automatic) == ("b", 3, False, False)
    assert b.reasons == (
        "pretraining failed: training diverged: the loss is nan at step 11 (replicates 0 to 2)",
    )
    assert mae.reasons == ("not started: the same command runs it (replicate 4)",) and mae.automatic
    kept = runs_of([one.run for one in missing], compared)
    assert kept == [], "neither runs of arms that are left out, nor of their pretrainings"
