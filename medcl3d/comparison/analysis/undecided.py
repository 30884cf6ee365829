"""The first sentence of a comparison without a test: the reason, and the replicates that would be needed."""

from __future__ import annotations

import numpy as np

from medcl3d.comparison.analysis.analysis import ALPHA, Analysis, ArmNumbers
from medcl3d.comparison.analysis.number_text import number
from medcl3d.evaluation.statistics.intervals import MIN_REPLICATES_FOR_TEST
from medcl3d.evaluation.statistics.power import replicates_needed, upper_limit_of_replicates

MOST = 1000
"""Replicates beyond which their number is not given."""


def undecided(analysis: Analysis) -> str:
    """The reason for which nothing is concluded, and the replicates that would be needed; "" after tests.

    Their number is for the margin, if one was preregistered, otherwise for the observed difference between
    the reference and the best other arm.
    """
    others = [arm for arm in analysis.arms if arm.name != analysis.reference]
    if analysis.tested or not others:
        return ""
    if analysis.stage == "screen":
        return "No conclusion: this is a screening, which only selects candidates for a confirmation."
    n = len(analysis.replicates)
    few = f"{n} replicate{'s' if n > 1 else ''}, and a test needs {MIN_REPLICATES_FOR_TEST}"
    why = few if n < MIN_REPLICATES_FOR_TEST else analysis.untested or few
    sign = 1 if analysis.higher else -1
    best = max(others, key=lambda arm: sign * arm.endpoint.mean.mean)
    return f"No conclusion: {why}. {_needed(analysis, best) if n > 1 else _means(analysis, best)}"


def _needed(analysis: Analysis, best: ArmNumbers) -> str:
    """A sentence with the number of replicates that detect a difference, of an arm to the reference."""
    assert best.components is not None and best.endpoint.difference is not None
    observed = abs(best.endpoint.difference.mean)
    difference = analysis.margin or observed
    if not difference:
        return "All means are equal."
    values = np.subtract(analysis.values[best.name], analysis.values[analysis.reference])
    cautious = upper_limit_of_replicates(values, best.components, analysis.num_cases)
    level = ALPHA / len(analysis.family) if best.name in analysis.family else ALPHA
    count = replicates_needed(difference, cautious, analysis.num_cases, level, MOST)
    what = "the margin" if analysis.margin else f"as between {_means(analysis, best, False)}"
    detected = (
        f"would be needed to detect a difference of {number(difference)}, {what}, in 80% of repetitions"
    )
    if count is not None:
        return f"About {max(count, MIN_REPLICATES_FOR_TEST)} replicates {detected}."
    patients = f" with these {analysis.num_cases} test patients" if analysis.num_cases else ""
    return f"More than {MOST} replicates{patients} {detected}."


def _means(analysis: Analysis, best: ArmNumbers, sentence: bool = True) -> str:
    """The means of an arm and of the reference."""
    own, other = (number(analysis.arm(name).endpoint.mean.mean) for name in (best.name, analysis.reference))
    means = f"“{best.name}” ({own}) and “{analysis.reference}” ({other})"
    return f"One replicate does not show whether {means} differ by more than chance." if sentence else means
