"""Numbers of an analysis, and sentences that claim no more than the tests show."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from medcl3d.comparison.analysis.analyse import analyse
from medcl3d.comparison.analysis.case_values import collect
from medcl3d.comparison.analysis.conclusion import conclusion_sentences
from medcl3d.comparison.analysis.number_text import with_interval
from medcl3d.comparison.plan.cells import cells
from medcl3d.comparison.plan.config import Arm, CompareConfig, Recipe
from medcl3d.evaluation.statistics.crossed import over_replicates_and_cases
from medcl3d.evaluation.statistics.intervals import Interval


def config_of(**fields) -> CompareConfig:
    return CompareConfig(
        **{
            "out_dir": Path("runs"), "finetune": Recipe(config=Path("f.yaml")),
            "arms": {"scratch": Arm(), "a": Arm(pretraining="a"), "b": Arm(pretraining="b")},
            "reference": "scratch", "vary": {"num_labelled": [2, 8]}, "replicates": 10, **fields,
        }
    )  # fmt: skip


def table_of(config: CompareConfig, n: int, gains: dict[str, float], noise: float = 0.01) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    rows = []
    for seed, labels in itertools.product(range(n), (2, 8)):
        shared = rng.normal(0.5, 0.1)
        rows += [
            {
                "arm": arm,
                "num_labelled": labels,
                "seed": seed,
                "dice": shared + gains.get(arm, 0) + rng.normal(0, noise),
            }
            for arm in config.arms
        ]
    return pd.DataFrame(rows)


def wide(table: pd.DataFrame) -> pd.DataFrame:
    return table.groupby(["seed", "arm"])["dice"].mean().unstack()


def test_endpoint_is_the_mean_over_label_counts_per_replicate():
    config = config_of(replicates=8)
    table = table_of(config, 8, {"a": 0.03})
    analysis = analyse(table, config)
    values = wide(table)
    a = analysis.arm("a")
    assert a.endpoint.mean.mean == pytest.approx(values["a"].mean())
    expected = stats.ttest_rel(values["a"], values["scratch"])
    assert a.endpoint.difference.low == pytest.approx(expected.confidence_interval().low)
    assert a.test.t == pytest.approx(expected.pvalue)
    assert a.test.wilcoxon == pytest.approx(
        stats.wilcoxon(values["a"], values["scratch"], method="exact").pvalue
    )
    p = [stats.ttest_rel(values[arm], values["scratch"]).pvalue for arm in ("a", "b")]
    assert a.test.holm == pytest.approx(2 * p[0])
    assert analysis.arm("b").test.holm == pytest.approx(max(2 * p[0], p[1]))


def test_endpoint_may_take_some_cells():
    config = config_of(endpoint={"num_labelled": 8})
    table = table_of(config, 4, {})
    assert analyse(table, config).arm("a").endpoint.mean.mean == pytest.approx(
        table.query("arm == 'a' and num_labelled == 8")["dice"].mean()
    )


def test_cells_are_paired_within_a_replicate():
    config = config_of()
    table = table_of(config, 4, {"a": 0.1}, noise=0)
    numbers = analyse(table, config).arm("a").cells[(("num_labelled", 2),)]
    assert numbers.difference.low == pytest.approx(0.1)
    assert numbers.mean.high - numbers.mean.low > 0.05
    assert analyse(table, config).arm("scratch").endpoint.difference is None


def test_incomplete_replicates_are_left_out():
    config = config_of()
    table = table_of(config, 4, {})
    holed = table[~((table["seed"] == 2) & (table["arm"] == "b") & (table["num_labelled"] == 8))]
    analysis = analyse(holed, config)
    assert analysis.replicates == (0, 1, 3)
    assert analysis.arm("a").endpoint.mean.n == 3
    assert analyse(table[table["arm"] != "b"], config) is None
    assert analyse(pd.DataFrame(), config) is None


def test_an_incomplete_comparison_is_not_tested():
    table = table_of(config_of(), 10, {"a": 0.3})
    early = analyse(table[table["seed"] < 7], config_of())
    assert not early.tested and analyse(table, config_of()).tested
    reason = (
        "No test, since 3 of 10 planned replicates are missing, and only a complete comparison is tested: the"
    )
    assert conclusion_sentences(early)[1].startswith(reason)


def test_too_few_cases_are_not_tested():
    config, table, cases = crossed(10, num_cases=4)
    analysis = analyse(table, config, cases)
    assert not analysis.tested and analysis.arm("a").endpoint.difference.known
    assert (
        "since there are only 4 test patients, and intervals of so few cover too little"
        in conclusion_sentences(analysis)[1]
    )


@pytest.mark.parametrize("n", [2, 5])
def test_under_six_replicates_there_is_no_test(n):
    config = config_of()
    analysis = analyse(table_of(config, n, {"a": 0.3}), config)
    seen, certainty = conclusion_sentences(analysis)
    assert all(arm.test is None for arm in analysis.arms)
    assert certainty.startswith("No test")
    assert "excludes 0, which suggests a difference but is not a test" in certainty
    assert conclusion_sentences(analyse(table_of(config, n, {}, noise=0.1), config))[1].endswith(
        "its 95% interval contains 0."
    )
    assert "p =" not in seen + certainty


def test_one_replicate_does_not_rank_arms():
    config = config_of()
    analysis = analyse(table_of(config, 1, {"a": 0.3}), config)
    assert not analysis.arm("a").endpoint.mean.known
    assert "so the arms are not ranked" in conclusion_sentences(analysis)[1]


def test_numbers_are_written_with_their_interval():
    assert (
        with_interval(Interval(-0.1234, -0.2, 0.05, 3), sign=True)
        == "\N{MINUS SIGN}0.123 [\N{MINUS SIGN}0.200, +0.050]"
    )
    assert with_interval(Interval(12.3456, float("nan"), float("nan"), 1)) == "12.35"


def crossed(n: int, num_cases: int = 20, gain: float = 0.05, **fields):
    """A comparison in which an arm's gain varies over cases, and its values per patient."""
    config = config_of(**fields)
    rng = np.random.default_rng(8)
    of_case = {arm: rng.normal(gain if arm == "a" else 0, 0.1, num_cases) for arm in config.arms}
    found = {}
    for seed in range(config.first_seed, config.first_seed + n):
        for arm, cell in itertools.product(config.arms, cells(config)):
            values = 0.5 + of_case[arm] + rng.normal(0, 0.01) + rng.normal(0, 0.02, num_cases)
            found[arm, cell, seed] = (
                float(values.mean()),
                {f"p{k:02}": float(v) for k, v in enumerate(values)},
            )
    rows = [
        {"arm": arm, **dict(cell), "seed": seed, "dice": value}
        for (arm, cell, seed), (value, _) in found.items()
    ]
    return config, pd.DataFrame(rows), collect(found, "dice")


def test_cases_enter_the_variance_of_everything():
    config, table, cases = crossed(10)
    both, alone = analyse(table, config, cases), analyse(table, config)
    assert (both.num_cases, alone.num_cases) == (20, None)
    for name in ("a", "b"):
        wide, narrow = both.arm(name).endpoint.difference, alone.arm(name).endpoint.difference
        assert wide.mean == pytest.approx(narrow.mean)
        assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
        assert both.arm(name).test.t > alone.arm(name).test.t
        assert both.arm(name).test.wilcoxon == alone.arm(name).test.wilcoxon
    d = np.array(
        [
            [np.mean([cases.of_run[a, c, s] for c in cells(config)], axis=0) for s in range(10)]
            for a in ("a", "scratch")
        ]
    )
    assert both.arm("a").test.t == pytest.approx(float(over_replicates_and_cases(d[0] - d[1]).p_value()))
    assert (
        "these test cases only" in conclusion_sentences(analyse(table_of(config, 10, {"a": 0.3}), config))[1]
    )


def test_only_the_declared_family_is_tested_and_adjusted():
    config, table, cases = crossed(10, family=("a",))
    analysis = analyse(table, config, cases)
    a, b = analysis.arm("a"), analysis.arm("b")
    assert a.test.holm == a.test.t
    assert b.test is None and b.endpoint.difference.known
    assert analyse(table, config_of(), cases).arm("a").test.holm == pytest.approx(2 * a.test.t)
    certainty = conclusion_sentences(analyse(table, config_of(family=("b",)), cases))[1]
    assert certainty.startswith(
        "Compared with “scratch” by a paired t-test: not distinguishable from it “b” ("
    )
    assert (
        "; outside the family, by intervals only, which are not tests: “a” (+0.0" in certainty
        and "], the best mean)" in certainty
    )


def test_a_screening_tests_nothing():
    config, table, cases = crossed(10, stage="screen", gain=0.5)
    analysis = analyse(table, config, cases)
    assert not analysis.tested
    assert "screening" in conclusion_sentences(analysis)[1]


def test_pairs_of_arms_are_paired_differences():
    config, table, cases = crossed(4)
    analysis = analyse(table, config, cases)
    assert len(analysis.pairs) == 6
    assert analysis.pairs["a", "scratch"] == analysis.arm("a").endpoint.difference
    assert analysis.pairs["a", "b"].mean == pytest.approx(-analysis.pairs["b", "a"].mean)


def test_effect_and_smallest_difference():
    config, table, cases = crossed(10)
    a = analyse(table, config, cases).arm("a")
    wide = wide_differences(table)
    assert a.effect.mean == pytest.approx(wide.mean() / wide.std(ddof=1) * (1 - 3 / 35), rel=1e-3)
    estimate = a.endpoint.difference
    half = estimate.high - estimate.mean
    assert half < a.smallest < 2.5 * half  # (t + t of 80%) / t of an interval, at half the level
    assert analyse(table[table["seed"] == 0], config).arm("a").smallest is None


def wide_differences(table):
    values = wide(table)
    return values["a"] - values["scratch"]


@pytest.mark.parametrize("reference", ["scratch", "a"])
def test_labels_that_scratch_would_need_whatever_the_reference_is(reference):
    config = config_of(vary={"num_labelled": [2, 8], "train.steps": [1, 2]}, reference=reference)
    means = {
        ("scratch", 2): 0.5,
        ("scratch", 8): 0.7,
        ("a", 2): 0.6,
        ("a", 8): 0.8,
        ("b", 2): 0.4,
        ("b", 8): 0.7,
    }
    rows = [
        {"arm": arm, "num_labelled": n, "train.steps": steps, "seed": 0, "dice": value}
        for (arm, n), value in means.items()
        for steps in (1, 2)
    ]
    analysis = analyse(pd.DataFrame(rows), config)
    words = {
        (arm.name, dict(cell)["num_labelled"]): text
        for arm in analysis.arms
        for cell, text in arm.labels.items()
    }
    assert words == {("a", 2): "4.0", ("a", 8): "more than 8", ("b", 2): "fewer than 2", ("b", 8): "8.0"}
