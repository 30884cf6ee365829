"""A comparison without a test begins with that, and with the replicates that it would need."""

from __future__ import annotations

import re

import numpy as np
import pytest

from medcl3d.comparison.analysis.analyse import analyse
from medcl3d.comparison.analysis.training_warnings import last_share
from medcl3d.comparison.analysis.undecided import undecided
from medcl3d.comparison.plan.config import Arm
from medcl3d.comparison.report.page import plain_text
from medcl3d.evaluation.statistics.crossed import Components, expected
from medcl3d.evaluation.statistics.power import replicates_needed, smallest_difference
from tests.comparison.test_analysis import config_of, table_of


def sentence(n: int, gain: float, noise: float, **fields: object) -> str:
    config = config_of(replicates=max(n, 1), **fields)
    found = analyse(table_of(config, n, {"a": gain}, noise), config)
    assert found is not None
    return undecided(found)


def test_two_replicates_name_what_they_would_need() -> None:
    few = sentence(2, 0.012, 0.02)
    assert re.match(
        r"No conclusion: 2 replicates, and a test needs 6. (About \d+|More than 1000) replicates would be "
        r"needed to detect a difference of 0\.\d+, as between “[ab]” \(0\.\d+\) and “scratch” \(0",
        few,
    )
    with_margin = sentence(3, 0.012, 0.002, margin=0.05)
    assert (
        "About 6 replicates would be needed to detect a difference of 0.050, the margin, in 80%"
        in with_margin
    )


def test_one_replicate_a_screening_and_a_test() -> None:
    assert sentence(1, 0.1, 0.01).startswith(
        "No conclusion: 1 replicate, and a test needs 6. One replicate does not show whether “a” ("
    )
    assert "this is a screening" in sentence(4, 0.1, 0.01, stage="screen")
    assert sentence(6, 0.1, 0.01) == "", "tested: the conclusion comes first"
    assert sentence(3, 0.1, 0.01, arms={"scratch": Arm()}) == "", "nothing to compare"


def test_the_number_of_replicates_is_the_smallest_that_detects() -> None:
    parts = Components(np.array(0.0004), np.array(0.0), np.array(0.0004))
    found = replicates_needed(0.02, parts, 10, 0.05)
    assert found is not None and found > 2
    assert smallest_difference(expected(parts, found, 10)) <= 0.02
    assert smallest_difference(expected(parts, found - 1, 10)) > 0.02
    cases = Components(np.array(0.0), np.array(0.01), np.array(0.001))
    assert replicates_needed(0.01, cases, 6) is None, "more replicates do not replace test patients"


def test_the_end_of_a_curve() -> None:
    steps = np.arange(1, 41)
    assert last_share(list(1 - 0.02 * steps)) == pytest.approx(1 / 3)
    assert last_share(list(1 / np.sqrt(steps))) == pytest.approx(0.09, abs=0.03)
    assert last_share([0.5, 0.4]) is None and last_share([0.1] * 40) is None
    assert last_share([*steps[:-1], float("nan")]) is None
    noise = np.random.default_rng(0).normal(0, 1, 40)
    assert last_share(list(noise - 0.001 * steps)) is None


def test_intervals_end_at_the_limits_of_the_metric() -> None:
    config = config_of(replicates=2)
    table = table_of(config, 2, {"a": 0.45}, noise=0.2)
    table["dice"] = table["dice"].clip(0, 1)
    found = analyse(table, config)
    assert found is not None
    means = [arm.endpoint.mean for arm in found.arms]
    assert max(one.high for one in means) == 1 and min(one.low for one in means) >= 0
    unknown = config_of(replicates=2, metric="smoothness", better="higher")
    other = analyse(table.rename(columns={"dice": "smoothness"}), unknown)
    assert other is not None and max(arm.endpoint.mean.high for arm in other.arms) > 1


def test_values_of_configurations_are_shown_without_quotes_and_braces() -> None:
    value = {"overlapping_crops": {"min_iou": 0.3, "sizes": [16, 16], "inner": None}, "simclr": {}}
    assert plain_text(value) == "overlapping_crops min_iou 0.3, sizes 16 x 16, inner none, simclr"
    assert plain_text(None) == "none" and plain_text(5e-4) == "0.0005" and plain_text(True) == "True"
