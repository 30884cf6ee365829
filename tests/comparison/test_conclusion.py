"""The two sentences of the conclusion: recommendation, comparison with controls, and no claim beyond the
tests.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medcl3d.comparison.analysis.analyse import analyse
from medcl3d.comparison.analysis.conclusion import conclusion_sentences
from medcl3d.comparison.analysis.number_text import number, with_interval
from medcl3d.comparison.plan.arm_types import ArmType
from medcl3d.comparison.plan.config import Arm, CompareConfig, Recipe
from medcl3d.evaluation.statistics.intervals import Interval

KINDS: dict[str, ArmType] = {
    "ours": "pairs",
    "published": "pairs",
    "views": "augmented",
    "more views": "augmented",
    "placebo": "placebo",
    "mae": "mae",
    "scratch": "scratch",
}


def conclude(
    gains: dict[str, float], replicates: int = 10, reference: str = "ours", noise: float = 0.005, **fields
) -> tuple[str, str]:
    """The conclusion if each arm has this gain over 0.8 in every replicate, apart from noise."""
    metric = fields.get("metric", "dice")
    arms = {name: Arm(pretraining=None if KINDS[name] == "scratch" else name) for name in gains}
    config = CompareConfig(
        out_dir=Path("runs"),
        finetune=Recipe(config=Path("f.yaml")),
        arms=arms,
        reference=reference,
        replicates=replicates,
        **fields,
    )
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(replicates):
        shared = rng.normal(0.8, 0.1)
        rows += [
            {"arm": arm, "seed": seed, metric: shared + gain + rng.normal(0, noise)}
            for arm, gain in gains.items()
        ]
    analysis = analyse(pd.DataFrame(rows), config, arm_types={name: KINDS[name] for name in gains})
    assert analysis is not None
    return conclusion_sentences(analysis)


def test_a_candidate_better_than_all_others_is_recommended() -> None:
    seen, certainty = conclude({"ours": 0.1, "published": 0.05, "placebo": 0.02, "mae": 0.02, "scratch": 0})
    assert (
        seen.startswith("Use “ours” (mean dice 0.")
        and "every other arm of the preregistered family does worse" in seen
    )
    assert certainty.startswith(
        "Compared with “ours” by paired t-tests (Holm-adjusted over the 4 arms of the preregistered "
        "family): worse “published” ("
    )
    for name in ("placebo", "mae", "scratch"):
        assert f"“{name}” (\N{MINUS SIGN}0." in certainty
    assert "better" not in certainty and "not distinguishable" not in certainty


def test_better_than_scratch_and_equal_to_the_placebo_is_an_effect_of_pretraining_not_of_pairs() -> None:
    seen, certainty = conclude({"ours": 0.1, "published": 0.1, "placebo": 0.1, "scratch": 0})
    assert seen.startswith("Use “ours” or “published”, whichever costs least: “ours” (mean dice")
    assert "does better than “scratch”, and is not distinguishable from “published” or “placebo”" in seen
    assert "the strategy's signal columns, which a placebo permutes, are not shown to help" in seen
    assert "worse “scratch” (" in certainty and "not distinguishable from it “published” (" in certainty


def test_an_arm_equal_to_scratch_is_not_recommended() -> None:
    seen, certainty = conclude({"ours": 0.1, "published": 0.0, "scratch": 0.1})
    assert (
        "is not shown to do better than “scratch”: there is no evidence that its pretraining is worth the "
        "cost" in seen
    )
    assert not seen.startswith("Use")
    assert "worse “published” (" in certainty


def test_a_better_arm_is_recommended_instead_of_the_reference() -> None:
    seen, certainty = conclude({"scratch": 0, "ours": 0.3, "published": 0.1}, reference="scratch")
    assert (
        seen.startswith("Use “ours” rather than “scratch”: over 10 replicates the mean dice is 1.")
        and ", against 0." in seen
    )
    assert ": better “ours” (+0.299" in certainty and "these test cases only" in certainty
    assert "claim" not in certainty
    assert "a claim needs 10 replicates" in conclude({"scratch": 0, "ours": 0.3}, 6, "scratch")[1]


def test_a_better_placebo_gives_no_recommendation() -> None:
    seen, _ = conclude({"scratch": 0, "placebo": 0.3, "published": 0.1}, reference="scratch")
    assert "it is a placebo: what helps is not the strategy's signal columns" in seen and "Use" not in seen


def test_indistinguishable_winners_are_named_together() -> None:
    seen, _ = conclude({"scratch": 0, "ours": 0.3, "published": 0.3, "mae": 0.1}, reference="scratch")
    assert seen.startswith(
        (
            "Use “ours” or “published”, whichever costs least, rather",
            "Use “published” or “ours”, whichever costs",
        )
    )
    assert "“mae”" not in seen


def test_a_placebo_as_good_as_the_winner_prevents_the_claim_for_signal_columns() -> None:
    seen, _ = conclude({"scratch": 0, "ours": 0.302, "placebo": 0.3}, reference="scratch")
    assert seen.startswith("Use “ours” rather than “scratch”")
    assert (
        "; “ours” is not distinguishable from “placebo”; the strategy's signal columns, which a placebo "
        "permutes, are not" in seen
    )


def test_augmented_views_as_good_as_the_winner_prevent_the_claim_for_the_choice_of_pairs() -> None:
    gains = {"scratch": 0, "ours": 0.302, "views": 0.3}
    seen, _ = conclude(gains, reference="scratch")
    assert seen.startswith("Use “ours” or “views”, whichever costs least, rather than “scratch”")
    assert "; “views” chooses no pairs, so the choice of pairs is not shown to help." in seen
    seen, _ = conclude({"scratch": 0, "ours": 0.3, "views": 0.1}, reference="scratch")
    assert "choice of pairs" not in seen
    seen, _ = conclude({"scratch": 0, "ours": 0.1, "views": 0.3}, reference="scratch")
    assert (
        seen.startswith("Use “views” rather than “scratch”")
        and "“views” chooses no pairs, so the choice of pairs is not" in seen
    )
    seen, _ = conclude({"ours": 0.3, "views": 0.3, "scratch": 0.0})
    assert (
        "is not distinguishable from “views”; “views” chooses no pairs, so the choice of pairs is not" in seen
    )


def test_augmented_views_as_the_reference() -> None:
    no_choice = "; “views” chooses no pairs, so the choice of pairs is not shown to help."
    seen, _ = conclude({"views": 0.3, "ours": 0.1, "scratch": 0}, reference="views")
    assert seen.startswith("Use “views” (mean dice") and seen.endswith(f"does worse{no_choice}")
    seen, _ = conclude({"views": 0.3, "ours": 0.3, "published": 0.3, "scratch": 0}, reference="views")
    assert seen.startswith(
        "Use “views”, “ours” or “published”, whichever costs least: “views” ("
    ) and seen.endswith(no_choice)
    seen, _ = conclude({"views": 0.1, "ours": 0.3, "scratch": 0}, reference="views")
    assert seen.startswith("Use “ours” rather than “views”") and "choice of pairs" not in seen
    seen, _ = conclude({"views": 0.3, "ours": 0.1, "placebo": 0.3, "scratch": 0}, reference="views")
    assert "signal columns" not in seen, "augmented views have none"


def test_augmented_views_ahead_by_an_interval_are_not_called_indistinguishable() -> None:
    """Automatic controls are outside the family, so only their interval can show that they are ahead."""
    seen, _ = conclude({"ours": 0.1, "published": 0.05, "views": 0.3, "scratch": 0}, family=("published",))
    assert (
        "and is not shown to do better than “views”; “views” chooses no pairs, so" in seen
        and "distinguishable" not in seen
    )
    seen, _ = conclude({"ours": 0.1, "published": 0.2, "views": 0.3, "scratch": 0}, family=("published",))
    assert (
        "; “published” is not shown to do better than “views”; “views” chooses no pairs" in seen
        and "distinguishable" not in seen
    )


def test_controls_outside_the_family_that_do_better_than_scratch_are_named() -> None:
    seen, _ = conclude({"scratch": 0, "ours": 0, "views": 0.3}, reference="scratch", family=("ours",))
    assert seen.startswith(
        "No arm of the preregistered family is shown to do better than “scratch” (mean dice"
    )
    assert "no evidence" not in seen
    assert seen.endswith(
        "; outside the family “views” (which chooses no pairs) does, by its interval, which is not a test."
    )


def test_a_placebo_that_is_ahead_by_chance_does_not_change_the_recommendation() -> None:
    """Which of two equal arms has the larger mean is chance, and the conclusion does not depend on it."""
    for placebo in (0.297, 0.303):
        seen, _ = conclude(
            {"scratch": 0, "ours": 0.3, "placebo": placebo, "views": 0.1}, reference="scratch", noise=0.02
        )
        assert (
            seen.startswith("Use “ours” rather than “scratch”")
            and "“ours” is not distinguishable from “placebo”" in seen
        )


def test_scratch_and_augmented_views_that_tie_are_both_named() -> None:
    gains = {"ours": 0.3, "views": 0.3, "scratch": 0.3, "published": 0.1}
    for reference in ("ours", "published"):
        assert (
            "is not shown to do better than “scratch” or “views”: there is no evidence"
            in conclude(gains, reference=reference)[0]
        )


def test_several_arms_are_listed_with_commas() -> None:
    seen, _ = conclude({"scratch": 0, "ours": 0.305, "views": 0.3, "more views": 0.3}, reference="scratch")
    assert "; “views” and “more views” choose no pairs, so the choice of pairs" in seen
    numbers = seen.split("the mean dice is ")[1].split(", against")[0]
    assert numbers.count(" and ") == 1 and numbers.count(", ") == 1


def test_a_placebo_is_not_recommended() -> None:
    assert not conclude({"placebo": 0.3, "ours": 0.3, "scratch": 0}, reference="placebo")[0].startswith("Use")


def test_better_than_another_strategy_is_not_better_than_scratch() -> None:
    seen, _ = conclude(
        {"ours": 0.1, "published": 0.0, "scratch": 0.1}, reference="published", family=("ours",)
    )
    assert (
        "“ours” (mean dice" in seen
        and "does better than “published”, and is not shown to do better than “scratch”" in seen
    )
    assert (
        not seen.startswith("Use") and "there is no evidence that its pretraining is worth the cost" in seen
    )


def test_scratch_outside_the_family_can_prevent_a_recommendation() -> None:
    gains = {"ours": 0.1, "published": 0.0, "scratch": 0.1, "mae": 0.0}
    seen, certainty = conclude(gains, family=("published",))
    assert "is not shown to do better than “scratch”: there is no evidence" in seen and not seen.startswith(
        "Use"
    )
    assert "; outside the family, by intervals only, which are not tests: “scratch” (" in certainty
    assert "“mae” (\N{MINUS SIGN}0.1" in certainty


def test_worse_arms_outside_the_family_support_by_their_interval_alone() -> None:
    seen, _ = conclude({"ours": 0.1, "published": 0.0, "scratch": 0.0}, family=("published",))
    assert "and so do the arms outside it, by their intervals alone" in seen
    seen, _ = conclude({"ours": 0.1, "published": 0.1, "scratch": 0.0}, family=("published",))
    assert (
        "does better than “scratch” (by its interval, which is not a test), and is not distinguishable "
        "from “published”" in seen
    )
    seen, _ = conclude(
        {"ours": 0.1, "mae": 0.3, "published": 0.0, "scratch": 0.0}, family=("published", "scratch")
    )
    assert "and is not shown to do better than “mae”" in seen


def test_a_small_difference_has_as_many_decimals_as_its_interval_needs() -> None:
    assert (
        with_interval(Interval(0.00012, 0.00008, 0.00016, 10), sign=True)
        == "+0.000120 [+0.000080, +0.000160]"
    )
    assert (
        with_interval(Interval(-0.0004, -0.007, 0.006, 10), sign=True)
        == "\N{MINUS SIGN}0.000 [\N{MINUS SIGN}0.007, +0.006]"
    )
    assert [number(value) for value in (0.00051, 0, 12.34, 0.5)] == ["0.00051", "0.000", "12.34", "0.500"]


def test_noise_is_not_significant() -> None:
    seen, certainty = conclude({"scratch": 0, "ours": 0.001, "published": 0}, reference="scratch", noise=0.05)
    assert seen.startswith("No arm is shown to do better than “scratch” (mean dice")
    assert ": not distinguishable from it “ours” (" in certainty and "these test cases only" not in certainty


def test_a_comparison_without_controls() -> None:
    seen, _ = conclude({"ours": 0.1, "published": 0.1})
    assert seen.startswith("“ours” (mean dice") and "is not distinguishable from “published”" in seen


def test_lower_may_be_better() -> None:
    gains = {"scratch": 0, "ours": -0.3, "published": 0.3}
    assert conclude(gains, reference="scratch", metric="brier")[0].startswith(
        "Use “ours” rather than “scratch”"
    )
    assert "“ours” has the best mean brier" in conclude(gains, 3, "scratch", metric="brier")[0]


@pytest.mark.parametrize(
    ("name", "words"),
    [("placebo", "its signal columns are permuted"), ("mae", "has no pairs"), ("scratch", "not pretrained")],
)
def test_an_untested_control_that_is_ahead_is_marked_as_a_control(name: str, words: str) -> None:
    seen, certainty = conclude({"ours": 0, name: 0.2}, 3)
    assert f"“{name}” (" in seen and words in seen and "has the best mean dice" in seen
    assert certainty.startswith("No test, since there are fewer than 6 replicates: the difference of")


def test_a_screening_is_named_first() -> None:
    assert conclude({"ours": 0, "published": 0.2}, 2, stage="screen")[1].startswith(
        "No test, since this is a screening that only selects candidates"
    )


def test_the_reference_may_be_best_without_tests() -> None:
    seen, certainty = conclude({"scratch": 0, "ours": -0.3, "published": -0.1}, 3, "scratch")
    assert "no arm does better than the reference “scratch”" in seen
    assert "“published”" in certainty and "\N{MINUS SIGN}0.1" in certainty


def test_equal_arms_show_no_effect() -> None:
    assert "no arm shows an effect" in conclude({"scratch": 0, "ours": 0}, 3, "scratch", noise=0)[0]


def test_one_arm_is_not_compared() -> None:
    assert conclude({"scratch": 0}, 3, "scratch")[1] == "There is no other arm to compare it with."
