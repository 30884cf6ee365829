"""Claims besides differences: equivalence, ordered endpoints, flagged replicates, stability of the order."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medcl3d.comparison.analysis.analyse import analyse
from medcl3d.comparison.analysis.analysis import Analysis
from medcl3d.comparison.analysis.conclusion import conclusion_sentences
from medcl3d.comparison.analysis.conclusion_values import conclusion
from medcl3d.comparison.analysis.sensitivity import far_replicates
from medcl3d.comparison.compare import compare
from medcl3d.comparison.plan.config import Arm, CompareConfig, NextEndpoint, Recipe
from medcl3d.comparison.plan.preregistration import check_preregistration, preregister, preregistrations
from medcl3d.comparison.plan.preregistration import tested_fields as what_is_tested
from medcl3d.comparison.plan.runs import plan
from medcl3d.comparison.report.markdown import markdown
from medcl3d.comparison.report.sentences import tests as sentences
from medcl3d.config.loading import load
from medcl3d.core.errors import ConfigError
from medcl3d.evaluation.statistics.intervals import holm
from tests.comparison.test_analysis import config_of, table_of

RESULTS = Path(__file__).parents[2] / "docs" / "results"
MINUS = "\N{MINUS SIGN}"


def hippocampus(**fields: Any) -> Analysis:
    """The confirmation in docs/results/hippocampus_confirm.csv: replicates without values per patient."""
    table = pd.read_csv(RESULTS / "hippocampus_confirm.csv")
    config = CompareConfig(
        out_dir=Path("runs"), finetune=Recipe(config=Path("f.yaml")),
        arms={name: Arm(None if name == "scratch" else name) for name in table["arm"].unique()},
        reference="body_position",
        vary={"num_labelled": [2, 8], "train.steps": [100, 500]}, first_seed=2, replicates=10,
        **{"endpoint": {"train.steps": 500}, **fields},
    )  # fmt: skip
    found = analyse(table, config)
    assert found is not None
    return found


def test_the_hippocampus_confirmation_is_equivalent_within_a_hundredth() -> None:
    found = hippocampus(margin=0.01)
    difference = found.arm("scratch").endpoint.difference
    assert difference is not None
    assert [round(value, 3) for value in (difference.mean, difference.low, difference.high)] == [
        0.000,
        -0.004,
        0.005,
    ]
    for name in found.family:
        equivalence = found.arm(name).equivalence
        assert equivalence is not None and equivalence.adjusted is not None
        assert (
            -0.01 < equivalence.interval.low < equivalence.interval.high < 0.01
            and equivalence.adjusted < 0.05
        )
        assert difference.low < found.arm("scratch").equivalence.interval.low  # type: ignore[union-attr]
    certainty = conclusion_sentences(found)[1]
    assert "Equivalent to “body_position” within the preregistered margin of 0.010: " in certainty
    assert f"“scratch” (+0.000 [{MINUS}0.003, +0.004], p < 0.001)" in certainty
    assert certainty.endswith("(90% intervals, two one-sided tests, Holm-adjusted).")


def test_a_narrow_margin_is_not_met_by_all_arms_and_holm_adjusts() -> None:
    found = hippocampus(margin=0.005)
    equivalent = {name: found.arm(name).equivalence for name in found.family}
    adjusted = {
        name: one.adjusted for name, one in equivalent.items() if one is not None and one.adjusted is not None
    }
    assert adjusted["slice_position"] > 0.05 > adjusted["body_position (placebo)"]
    assert "; not shown to be equivalent: “slice_position”" in conclusion_sentences(found)[1]
    single = hippocampus(margin=0.005, family=("slice_position",)).arm("slice_position").equivalence
    assert single is not None and adjusted["slice_position"] == pytest.approx(
        single.adjusted
    )  # the largest p is not multiplied
    wide = hippocampus(margin=0.0001)
    none = "No arm is shown to be equivalent to “body_position” within the preregistered margin of 0.00010"
    assert f"{none}; not shown to be equivalent:" in conclusion_sentences(wide)[1]


def test_a_margin_adds_sentences_and_changes_no_number() -> None:
    without, with_one = hippocampus(), hippocampus(margin=0.01)
    assert any("(`margin`) was not declared" in sentence for sentence in sentences(without))
    assert not any("`margin`" in sentence for sentence in sentences(with_one))
    (seen, certainty), (seen_with_one, certainty_with_one) = (
        conclusion_sentences(without),
        conclusion_sentences(with_one),
    )
    assert seen == seen_with_one and certainty_with_one.startswith(certainty)
    assert all(arm.equivalence is None for arm in without.arms)
    for arm in without.arms:
        other = with_one.arm(arm.name)
        assert (arm.endpoint, arm.cells, arm.test, arm.smallest) == (
            other.endpoint,
            other.cells,
            other.test,
            other.smallest,
        )


@pytest.mark.parametrize("fields", [{"replicates": 5}, {"stage": "screen"}])
def test_few_replicates_and_screenings_have_intervals_and_no_equivalence_test(fields: dict[str, Any]) -> None:
    config = config_of(margin=0.5, **fields)
    found = analyse(table_of(config, config.replicates, {}), config)
    assert found is not None
    equivalence = found.arm("a").equivalence
    assert equivalence is not None and equivalence.interval.known and equivalence.adjusted is None
    assert "quivalent" not in " ".join(conclusion_sentences(found))


def test_arms_outside_the_family_are_not_called_equivalent() -> None:
    config = config_of(margin=0.5, family=("a",))
    found = analyse(table_of(config, 10, {}), config)
    assert found is not None
    assert (
        found.arm("b").equivalence.adjusted is None
        and "“b”" not in conclusion_sentences(found)[1].split("Equivalent")[1]
    )  # type: ignore[union-attr]


SIX = {
    "arms": {"scratch": {}, "gain": {"set": {"gain": 0.1}}},
    "pretrainings": {},
    "replicates": 6,
    "jobs": 2,
}


def test_a_far_replicate_is_noted_before_the_numbers(comparison: Callable[..., Path]) -> None:
    path = comparison(**SIX, endpoint={"num_labelled": 8})
    text = compare(path).read_text()
    assert (
        "one number per replicate and arm, with num_labelled 8." in text
        and "<strong>Note.</strong> Far from" not in text
    )
    results = Path("runs/finetune/scratch/num_labelled=8/seed_3/results.json")
    found = json.loads(results.read_text())
    for one in (found["metrics"]["dice"], *found["cases"]):
        one |= {key: one[key] - 2 for key in ("mean", "dice") if key in one}
    results.write_text(json.dumps(found))
    text = compare(path).read_text()
    first, table = (
        text.index("<strong>Note.</strong> Far from the others of their arm"),
        text.index("The arms at the primary endpoint"),
    )
    assert (
        first < table < text.index("Without replicates that are far from the others")
        and "replicate 3 in “scratch”" in text
    )


def test_a_margin_is_preregistered_and_a_later_one_is_not_tested(comparison: Callable[..., Path]) -> None:
    path = comparison(**SIX, margin=0.2)
    text = compare(path).read_text()
    assert "Equivalent to “scratch” within the preregistered margin of 0.200: “gain” (" in text
    assert preregistrations(Path("runs/preregistration.jsonl"))[0]["what"]["margin"] == 0.2
    text = compare(path, ["margin=0.3"]).read_text()
    assert "No arm is called equivalent: margin: 0.2 -&gt; 0.3 was changed after results existed" in text
    assert "No conclusion, since the margin was changed after results existed" in text
    assert "p (Holm)" in text and "Equivalent to “scratch” within the preregistered" not in text, (
        "other tests remain valid"
    )
    text = compare(comparison(**SIX)).read_text()
    assert "p (Holm)" in text and "(`margin`) was not declared" in text


def test_older_declarations_stay_valid(comparison: Callable[..., Path]) -> None:
    config = load(comparison(**SIX), [], CompareConfig)
    assert not {"margin", "next_endpoints"} & set(what_is_tested(config))
    preregister(config, 0, 0)
    added = replace(config, margin=0.01)
    preregister(added, 24, 6)
    rows = preregistrations(config.report_dir / "preregistration.jsonl")
    found = check_preregistration(added, rows, ["dice"])
    assert (found.kept, found.margin_kept) == (True, False)
    both = check_preregistration(replace(added, reference="gain"), rows, ["dice"])
    assert (both.kept, both.margin_kept) == (False, False)
    assert check_preregistration(config, rows, ["dice"]).note == "", "the first declaration again"


def two_metrics(gains: dict[str, float], later: dict[str, float], n: int = 10) -> pd.DataFrame:
    """Dice from `table_of`, and a distance with other gains."""
    table = table_of(config_of(), n, gains)
    rng = np.random.default_rng(9)
    table["hd95_mm"] = [5 - later.get(arm, 0) + rng.normal(0, 0.1) for arm in table["arm"]]
    return table


ORDER = (NextEndpoint(metric="hd95_mm"), NextEndpoint(endpoint={"num_labelled": 8}))


def test_an_arm_is_tested_at_an_endpoint_only_after_the_one_before() -> None:
    config = config_of(next_endpoints=ORDER)
    found = analyse(two_metrics({"a": 0.3}, {"a": 1.0, "b": 1.0}), config)
    assert found is not None
    distance, eight = found.later
    assert distance.metric == "hd95_mm" and not distance.higher and len(distance.cells) == 2
    assert eight.cells == ((("num_labelled", 8),),) and eight.higher
    assert set(distance.adjusted) == {"a"}, "b is not better in dice, so its gain in distance is not tested"
    assert distance.adjusted["a"] < 0.001 and set(eight.adjusted) == {"a"}
    assert distance.differences["b"].mean == pytest.approx(-1, abs=0.1)
    # a is rejected at all its endpoints and leaves its share to b.
    b, a = found.arm("b").test, found.arm("a").test
    assert a is not None and b is not None and b.holm == pytest.approx(holm([a.t, b.t])[1])
    lines = markdown(found)
    assert (
        "Endpoint 2 of the preregistered order, hd95_mm (lower is better): num_labelled 2; num_labelled 8."
        in lines
    )
    assert "| b | " in lines and "not tested |" in lines


def test_a_later_endpoint_that_fails_keeps_its_share() -> None:
    config = config_of(next_endpoints=(NextEndpoint(metric="hd95_mm"),))
    found = analyse(two_metrics({"a": 0.3, "b": 0.007}, {}), config)
    plain = analyse(two_metrics({"a": 0.3, "b": 0.007}, {}), config_of())
    assert found is not None and plain is not None
    b, before = found.arm("b").test, plain.arm("b").test
    assert b is not None and before is not None
    assert before.holm == before.t and b.holm == pytest.approx(2 * b.t)
    assert found.later[0].adjusted["a"] > 0.05


def test_a_later_endpoint_that_is_not_defined_tests_nothing() -> None:
    table = two_metrics({"a": 0.3}, {"a": 1.0})
    table.loc[3, "hd95_mm"] = np.nan
    found = analyse(table, config_of(next_endpoints=ORDER))
    assert found is not None
    assert (
        found.later[0].why_not == "hd95_mm is not defined in some runs"
        and found.later[0].differences["a"].n == 9
    )
    assert not found.later[0].adjusted and not found.later[1].adjusted
    assert found.arm("a").test is not None


def test_the_order_is_declared_and_reported(comparison: Callable[..., Path]) -> None:
    path = comparison(**SIX, next_endpoints=[{"endpoint": {"num_labelled": 8}}, {"metric": "hd95_mm"}])
    text = compare(path).read_text()
    assert "The endpoints in their preregistered order" in text
    assert "2. dice (higher is better): num_labelled 8" in text and "3. hd95_mm (lower is better)" in text
    what = preregistrations(Path("runs/preregistration.jsonl"))[0]["what"]["next_endpoints"]
    assert [(one["metric"], one["higher"], len(one["endpoint"])) for one in what] == [
        ("dice", True, 1),
        ("hd95_mm", False, 2),
    ]
    text = compare(path, ["next_endpoints=[{metric: hd95_mm}]"]).read_text()
    assert "No test: next_endpoints" in text
    found = json.loads(Path("runs/conclusion.json").read_text())
    assert found["next_endpoints"][0]["arms"][0]["p"] is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"next_endpoints": [{"endpoint": {"seed": 3}}]}, "next_endpoints.0.endpoint.seed: does not vary"),
        (
            {"next_endpoints": [{"endpoint": {"num_labelled": 3}}]},
            "next_endpoints.0.endpoint.num_labelled: 3 is not among",
        ),
        (
            {"next_endpoints": [{}, {"metric": "glow"}]},
            "next_endpoints.1.better: the direction of 'glow' is not known",
        ),
        (
            {"next_endpoints": [{"metric": "hd95_mm", "better": "higher"}]},
            "next_endpoints.0.better: higher values of hd95_mm are worse",
        ),
        ({"anchors": {"low": "scratch", "high": "all"}}, "anchors.high: no arm is named 'all'"),
        (
            {"anchors": {"low": "scratch", "high": "simclr", "high_endpoint": {"num_labelled": 9}}},
            "anchors.high_endpoint.num_labelled: 9",
        ),
        ({"margin": 0}, "margin"),
    ],
)
def test_inconsistent_fields_are_refused(
    comparison: Callable[..., Path], fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        plan(load(comparison(**fields), [], CompareConfig))


def test_a_collapsed_replicate_is_flagged_and_kept() -> None:
    config = config_of()
    table = table_of(config, 10, {"a": 0.03})
    table["dice"] = 0.75 + (table["dice"] - table["dice"].mean()) / 10 + 0.03 * (table["arm"] == "a")
    table.loc[(table["arm"] == "scratch") & (table["seed"] == 7), "dice"] = 0.356
    found = analyse(table, config)
    assert found is not None and found.without is not None
    assert [(one.arm, one.seed) for one in found.far] == [("scratch", 7)] and found.far[
        0
    ].value == pytest.approx(0.356)
    assert found.replicates == tuple(range(10)), "the conclusion includes all replicates"
    assert found.without.replicates == tuple(seed for seed in range(10) if seed != 7) and found.without.tested
    words = " ".join(far_replicates(found))
    assert "more than 7 scaled median absolute deviations from the median of its arm" in words
    assert "replicate 7 in “scratch” (0.356, median 0.7" in words and "The conclusion includes it." in words
    assert (
        conclusion_sentences(found)[0].startswith("No arm is shown to do better")
        and conclusion_sentences(found.without)[0] in words
    )
    assert conclusion_sentences(found.without)[0].startswith("Use “a”")
    assert words in " ".join(markdown(found).splitlines())


def test_the_real_replicate_in_which_every_arm_collapsed_is_named() -> None:
    found = hippocampus(endpoint={"train.steps": 100})
    assert {one.seed for one in found.far} == {9} and len(found.far) == len(found.arms)
    assert "replicate 9 in every arm: “body_position” (0.364, median 0.7" in far_replicates(found)[0]
    assert far_replicates(hippocampus())[0].startswith("No replicate is far from the others of its arm")


@pytest.mark.slow
def test_the_probability_of_being_best_is_in_all_reports(comparison: Callable[..., Path]) -> None:
    path = comparison(replicates=3)
    text = compare(path).read_text()
    assert "Stability of the order of the arms" in text and "probability of being best" in text
    found = json.loads(Path("runs/conclusion.json").read_text())
    best = {arm["name"]: arm["probability_best"] for arm in found["arms"]}
    assert best == {"scratch": 0, "dense, all": 1, "simclr": 0}
    assert found["conclusion"][1].startswith("No test") and found["margin"] is None
    assert "| dense, all | 1.00 | 1.0 | 1 to 1 |" in Path("runs/results.md").read_text()
    assert "Stability of the order" not in compare(comparison(), ["replicates=2"]).read_text()


def test_the_conclusion_is_plain_json() -> None:
    found = hippocampus(margin=0.01)
    read = json.loads(json.dumps(conclusion(found), allow_nan=False))
    scratch = next(arm for arm in read["arms"] if arm["name"] == "scratch")
    assert scratch["equivalence"]["equivalent"] is True and scratch["p"] == 1.0
    assert sum(arm["probability_best"] for arm in read["arms"]) == pytest.approx(1)
    assert read["arms"][0]["difference"] is None
