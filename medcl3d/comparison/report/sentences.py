"""Sentences of a report: its basis, its endpoint, its tests, and incomplete replicates."""

from __future__ import annotations

from collections.abc import Sequence

from medcl3d.comparison.analysis.analysis import Analysis
from medcl3d.comparison.analysis.compared_arms import Gaps
from medcl3d.comparison.analysis.incomplete_runs import count
from medcl3d.comparison.plan.cells import cell_words, endpoint_cells
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.runs import Run
from medcl3d.evaluation.statistics.coverage import covered
from medcl3d.evaluation.statistics.intervals import MIN_REPLICATES_FOR_TEST
from medcl3d.io.json_file import read_record

SCREENING = (
    "No test: this is a screening, which only selects candidates; a claim needs new seeds and untouched "
    "test cases."
)


def measured_side(runs: Sequence[Run]) -> str:
    """The patients on which the runs were measured: test, or validation in a screening."""
    return " and ".join(sorted({str(run.planned.get("measured_on", "test")) for run in runs if run.measures}))


def basis(analysis: Analysis, runs: Sequence[Run], config: CompareConfig) -> str:
    """The replicates, arms and cases behind the numbers."""
    side = measured_side(runs)
    results = [read_record(run.folder / "results.json") for run in runs if run.measures]
    scans = {case["scan"] for found in results for case in found.get("cases", [])}
    complete = f"{len(analysis.replicates)} of {analysis.planned} replicates complete"
    replicate = "a new pretraining, a new label selection and a new fine-tuning, with one seed for all arms"
    folds = f", in each of {config.folds} folds; its value is the mean over them" if config.folds else ""
    chosen = " A screening measures on validation patients, so test patients stay untouched."
    return (
        f"{complete} in all {len(analysis.arms)} arms; {len(scans)} {side} cases. "
        f"A replicate is {replicate}{folds}.{chosen if side == 'validation' else ''}"
    )


def endpoint(analysis: Analysis, config: CompareConfig) -> str:
    """The preregistered endpoint."""
    primary = endpoint_cells(config)
    over = f", the mean over {len(primary)} cells ({'; '.join(map(cell_words, primary))})"
    if len(primary) == 1:
        over = f", with {cell_words(primary[0])}" if primary[0] else ""
    direction = "higher" if analysis.higher else "lower"
    number = f"{analysis.metric} ({direction} is better), one number per replicate and arm"
    return f"Preregistered endpoint: {number}{over}."


def tests(analysis: Analysis, side: str = "test") -> list[str]:
    """Sentences on the intervals, their coverage, and the tests."""
    n, screening = len(analysis.replicates), analysis.stage == "screen"
    if n == 1:
        return ["One replicate has no interval and no test.", *([SCREENING] if screening else [])]
    varies = (
        "Intervals are for new replicates and new patients: the variance is that of a crossed two-way model"
    )
    alone = f"Intervals are for new replicates on these {side} cases only, not for other cases"
    patients = f"({n} replicates x {analysis.num_cases} {side} patients)"
    sentences = [f"{varies} {patients}." if analysis.num_cases else f"{alone}: {analysis.why_not}."]
    known = covered(n, analysis.num_cases or 0)
    if known is not None:
        replicates, cases, low, high = known
        size = f"{replicates} replicates and {cases} cases, {low:.0f} to {high:.0f}%"
        sentences.append(
            f"In simulated comparisons with normal effects, {size} of the 95% intervals covered the true "
            "difference, depending on what varies most; occasional collapsed runs reduce the coverage "
            "(docs/concepts/statistics.md)."
        )
    if analysis.tested:
        family = ", ".join(f"“{name}”" for name in analysis.family)
        over = " and over the endpoints in their preregistered order" if analysis.later else ""
        sentences += [
            "Tests: paired t-tests at the endpoint, Holm-adjusted over the preregistered family "
            f"({family}){over}.",
            "The exact Wilcoxon signed-rank p-values are a check over replicates only and are not adjusted.",
        ]
    elif screening:
        sentences.append(SCREENING)
    elif analysis.untested:
        sentences.append(f"No test: {analysis.untested}.")
    elif n < MIN_REPLICATES_FOR_TEST:
        sentences.append(f"No test: fewer than {MIN_REPLICATES_FOR_TEST} replicates.")
    if analysis.margin is None and not screening:
        undeclared = "The smallest difference that matters (`margin`) was not declared"
        sentences.append(
            f"{undeclared}, so no arm is called equivalent to the reference; “not distinguishable” does "
            "not mean equivalent."
        )
    return sentences


def incomplete(analysis: Analysis, gaps: Gaps) -> list[str]:
    """Sentences on excluded replicates and incomplete runs."""
    left = analysis.planned - len(analysis.replicates)
    sentences, compared = [], "compared " if gaps.left_out else ""
    if left:
        are = "is" if left == 1 else "are"
        words = f"{analysis.planned} replicates were planned; {left} {are} not complete in all {compared}arms"
        sentences.append(f"{words} and excluded from all numbers.")
    if gaps.runs:
        sentences.append(f"Incomplete runs: {count(gaps.runs)}. They are listed with reasons at the end.")
    if absent := [f"“{name}”" for name in analysis.family if name not in analysis.values]:
        those = (
            f"{', '.join(absent)} of the preregistered family {'is' if len(absent) == 1 else 'are'} left out"
        )
        sentences.append(
            f"{those} and counted with p = 1, so the adjustment of the other arms stays the same."
        )
    return sentences
