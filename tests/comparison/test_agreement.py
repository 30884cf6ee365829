"""Agreement of label-free scores with the endpoint: bounds, coverage over encoders, and sentences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from medcl3d.comparison.analysis.agreement import better, rank_interval, score_agreement, verdict
from medcl3d.comparison.plan.config import Arm, CompareConfig, Recipe

NAMES = ("a", "b", "c", "d")
ARMS = {
    "scratch": Arm(),
    **{f"arm {name}": Arm(pretraining=name) for name in NAMES},
    "a, all": Arm("a", {"transfer": "all"}),
}
CONFIG = CompareConfig(
    out_dir=Path("runs"), arms=ARMS, reference="scratch", finetune=Recipe(config=Path("f.yaml"))
)


def found_of(rankme, seeds=(0, 1, 2)):
    """Scores of four encoders: RankMe as given, alignment equal for all, uniformity for three of them."""
    of = {
        name: {seed: {"alignment": 0.1, "uniformity": -2.0, "rankme": rankme(k, seed)} for seed in seeds}
        for k, name in enumerate(NAMES)
    }
    del of["a"][0]["uniformity"]
    return of


ENDPOINT = {f"arm {name}": (0.1 * k, 0.2 * k, -0.1 * k) for k, name in enumerate(NAMES)}
ENDPOINT |= {
    "a, all": (9.0, 9.0, 9.0),
    "scratch": (0.0, 0.0, 0.0),
}  # neither is the first arm of a pretraining


def test_a_score_that_orders_encoders_as_the_endpoint_does_agrees():
    agreement = score_agreement(found_of(lambda k, seed: 10.0 * k + seed), CONFIG, ENDPOINT, higher=True)
    assert agreement is not None and agreement.order == ("d", "c", "b", "a")
    assert set(agreement.by_score) == {"rankme"}, "alignment is equal for all, and three encoders are too few"
    one = agreement.by_score["rankme"]
    assert one.correlation.mean == pytest.approx((1 + 1 - 1) / 3) and one.correlation.n == 4
    assert (one.pick, one.place) == ("d", 1)
    lower = score_agreement(found_of(lambda k, seed: 10.0 * k + seed), CONFIG, ENDPOINT, higher=False)
    assert lower is not None and lower.by_score["rankme"].correlation.mean == pytest.approx(-1 / 3)
    assert (lower.by_score["rankme"].pick, lower.by_score["rankme"].place) == ("d", 4)


def test_too_few_encoders_have_no_agreement():
    found = {name: values for name, values in found_of(lambda k, seed: float(k)).items() if name != "d"}
    assert score_agreement(found, CONFIG, ENDPOINT, higher=True) is None


def test_the_sentences_name_scores_that_select_the_best():
    right = score_agreement(found_of(lambda k, seed: float(k)), CONFIG, ENDPOINT, higher=True)
    wrong = score_agreement(found_of(lambda k, seed: float(-k)), CONFIG, ENDPOINT, higher=True)
    assert right is not None and wrong is not None
    assert verdict(right, "dice")[0].startswith(
        "rankme (1 of 1 scores) would have selected the encoder with the best mean dice, “d”; a random "
        "choice does so in one of 4"
    )
    assert verdict(wrong, "dice")[0].startswith("No score would have selected")
    assert "no interval is above 0" in verdict(wrong, "dice")[1]


def test_a_score_whose_interval_is_above_0_is_named():
    names = [f"e{k}" for k in range(12)]
    arms = {"scratch": Arm(), **{f"arm {name}": Arm(pretraining=name) for name in names}}
    config = CompareConfig(
        out_dir=Path("runs"), arms=arms, reference="scratch", finetune=Recipe(config=Path("f.yaml"))
    )
    found = {name: {0: {"rankme": float(k)}} for k, name in enumerate(names)}
    agreement = score_agreement(
        found, config, {f"arm {name}": (float(k),) for k, name in enumerate(names)}, higher=True
    )
    assert (
        agreement is not None and "rankme ordered the encoders as dice did" in verdict(agreement, "dice")[1]
    )


@pytest.mark.parametrize("num", [4, 5, 7, 12])
@pytest.mark.parametrize("correlation", [-1.0, -0.143, 0.0, 0.9, 1.0])
def test_an_interval_of_a_rank_correlation_stays_in_its_bounds(num, correlation):
    interval = rank_interval(correlation, num)
    assert -1 <= interval.low <= correlation <= interval.high <= 1 and interval.low < interval.high
    opposite = rank_interval(-correlation, num)
    assert (interval.low, interval.high) == pytest.approx((-opposite.high, -opposite.low))


def test_four_encoders_are_too_few_to_show_an_order():
    assert rank_interval(1.0, 4).low < 0
    with pytest.raises(ValueError, match="at least 4 are needed"):
        rank_interval(1.0, 3)


@pytest.mark.parametrize("num", [5, 7, 10])
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("replicates", [1, 2])
def test_the_interval_covers_the_true_correlation_at_its_level(num, rho, replicates):
    """Score and endpoint of encoders correlate, each with noise per replicate; the tolerance is 3 standard
    errors.
    """
    rng, tries, noise = np.random.default_rng(0), 600, 0.3
    covered = 0
    for _ in range(tries):
        effects = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], size=num)
        seen = [effects + noise * rng.normal(size=(num, 2)) for _ in range(replicates)]
        interval = rank_interval(float(np.mean([stats.spearmanr(*one.T).statistic for one in seen])), num)
        covered += interval.low <= 6 / np.pi * np.arcsin(rho / (1 + noise**2) / 2) <= interval.high
    assert covered / tries > 0.95 - 3 * np.sqrt(0.95 * 0.05 / tries)


@pytest.mark.parametrize(
    ("score", "good", "bad"),
    [("alignment", 0.1, 0.2), ("uniformity", -3, -2), ("rankme", 9, 8), ("alpha_req", 1.1, 0.7)],
)
def test_signed_scores_are_larger_for_better_values(score: str, good: float, bad: float) -> None:
    assert better(score, good) > better(score, bad)
