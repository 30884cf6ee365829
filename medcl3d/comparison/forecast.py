"""Summary of a plan before it runs: runs, steps, time, and the smallest detectable difference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medcl3d.comparison.analysis.analysis import ALPHA, analyse
from medcl3d.comparison.analysis.conclusion import number
from medcl3d.comparison.analysis.results import complete_replicates, gather, gather_cases
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.runs import MODELS, Run, family_of
from medcl3d.comparison.run.execute import kept_and_waiting
from medcl3d.comparison.run.timing import duration, seconds_to_go
from medcl3d.evaluation.statistics.crossed import Components, expected
from medcl3d.evaluation.statistics.intervals import MIN_REPLICATES_FOR_TEST
from medcl3d.evaluation.statistics.power import smallest_difference, upper_limit_of_replicates


def plan_summary(runs: Sequence[Run], config: CompareConfig) -> list[str]:
    """Lines that summarise the plan. ConfigError, DataError if existing run folders belong to another
    comparison.
    """
    done, _ = kept_and_waiting(runs)
    finished = {run.folder for run in done}
    lines = []
    for command in MODELS:
        group = [run for run in runs if run.command == command]
        if group:
            to_do = [run for run in group if run.folder not in finished]
            names = ", ".join(f"“{name}”" for name in dict.fromkeys(run.name for run in group))
            counts = (
                f"{len(group)} run{'s' if len(group) > 1 else ''} of {names}; "
                f"{len(group) - len(to_do)} done, {len(to_do)} to do"
            )
            lines.append(
                f"{command}: {counts} with {sum(run.steps for run in to_do)} "
                f"steps{_time(command, runs, done, config.jobs)}"
            )
    return [*lines, *_smallest(runs, config)]


def _time(command: str, runs: Sequence[Run], done: Sequence[Run], jobs: int) -> str:
    left = sum(run.command == command and run not in done for run in runs)
    if not left:
        return ""
    seconds = seconds_to_go(command, runs, done)
    return (
        "; time estimate after the first steps"
        if seconds is None
        else f"; about {duration(seconds / min(jobs, left))}"
    )


def _smallest(runs: Sequence[Run], config: CompareConfig) -> list[str]:
    """The smallest difference that such a comparison detects with a power of 80%, in the metric if a pilot
    exists.
    """
    if len(config.arms) < 2:
        return []
    if config.stage == "screen":
        return ["nothing is tested: this is a screening"]
    size, family = config.replicates, family_of(config)
    if size < MIN_REPLICATES_FOR_TEST:
        count = f"{size} replicate{'s' if size > 1 else ''}"
        return [
            f"{count}: intervals and no test; {MIN_REPLICATES_FOR_TEST} or more are tested, a claim needs "
            "ten or more"
        ]
    level = ALPHA / len(family)
    words = (
        f"smallest difference that {size} replicates detect with about 80% power, at level {ALPHA} / "
        f"{len(family)}"
    )
    pilot = _pilot(runs, config)
    if pilot is None:
        unit = Components(np.ones(()), np.zeros(()), np.zeros(()))
        of_one = smallest_difference(expected(unit, size, None), level)
        return [
            f"{words}: {of_one:.2f} standard deviations over replicates of the difference (more if test "
            "cases vary too)"
        ]
    parts, limits, num_cases, replicates = pilot

    def shown(components: Sequence[Components]) -> str:
        found = [smallest_difference(expected(part, size, num_cases), level) for part in components]
        return (
            number(min(found))
            if len(found) == 1
            else f"{number(min(found))} to {number(max(found))} over the arms"
        )

    over = "" if num_cases is None else f" and {num_cases} test patients"
    source = f"from the variances of the {replicates} complete replicates{over}"
    cautious = (
        f"{shown(limits)} in {config.metric}, {source}, with the replicate variance at its upper 80% limit"
    )
    return [
        f"{words}: {cautious} (at its estimate, which is below the true variance in most small pilots: "
        f"{shown(parts)})"
    ]


def _pilot(
    runs: Sequence[Run], config: CompareConfig
) -> tuple[list[Components], list[Components], int | None, int] | None:
    """Variance components of each arm of the family, the same with the replicate variance at its upper limit,
    and counts.

    The counts are test patients and replicates.
    """
    table = gather(runs, config)
    seeds = complete_replicates(table, config)
    if len(seeds) < 2:
        return None
    analysis = analyse(table, config, gather_cases(runs, config, seeds))
    assert analysis is not None, "two replicates are complete"
    known = {
        arm.name: arm.components
        for arm in analysis.arms
        if arm.name in analysis.family and arm.components is not None
    }
    reference = np.array(analysis.values[analysis.reference])
    limits = [
        upper_limit_of_replicates(analysis.values[name] - reference, part, analysis.num_cases)
        for name, part in known.items()
    ]
    return list(known.values()), limits, analysis.num_cases, len(seeds)
