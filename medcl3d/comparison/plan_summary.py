"""Summary of a plan before it runs: runs, steps, time, and the smallest detectable difference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medcl3d.comparison.analysis.analyse import analyse
from medcl3d.comparison.analysis.analysis import ALPHA
from medcl3d.comparison.analysis.number_text import number
from medcl3d.comparison.analysis.provenance import other_precision
from medcl3d.comparison.analysis.results import complete_replicates, gather, gather_cases
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.runs import COMMANDS, Run
from medcl3d.comparison.run.finished_runs import kept_and_waiting
from medcl3d.comparison.run.timing import seconds_to_go
from medcl3d.evaluation.statistics.crossed import Components, expected
from medcl3d.evaluation.statistics.intervals import MIN_REPLICATES_FOR_TEST
from medcl3d.evaluation.statistics.power import smallest_difference, upper_limit_of_replicates
from medcl3d.io.progress import duration


def plan_summary(runs: Sequence[Run], config: CompareConfig) -> list[str]:
    """Lines that summarise the plan. ConfigError, DataError if run folders belong to another comparison."""
    done, waiting = kept_and_waiting(runs)
    finished = {run.folder for run in done}
    lines = []
    for command in COMMANDS:
        group = [run for run in runs if run.command == command]
        if group:
            to_do = [run for run in group if run.folder not in finished]
            names = ", ".join(f"“{name}”" for name in dict.fromkeys(run.name for run in group))
            of = f"{len(group)} run{'s' if len(group) > 1 else ''} of {names}"
            left = f"{len(group) - len(to_do)} done, {len(to_do)} to do"
            steps = f"{sum(run.steps for run in to_do)} steps{_time(command, runs, done, config.jobs)}"
            lines.append(f"{command}: {of}; {left} with {steps}")
    here = other_precision(done, waiting) if config.executor == "local" else []
    return [*lines, *here, *_smallest(runs, config)]


def _time(command: str, runs: Sequence[Run], done: Sequence[Run], jobs: int) -> str:
    left = sum(run.command == command and run not in done for run in runs)
    if not left:
        return ""
    seconds = seconds_to_go(command, runs, done)
    if seconds is None:
        return "; time unknown, estimated after the first steps"
    source = "finished runs" if any(run.command == command for run in done) else "logged steps"
    return f"; about {duration(seconds / min(jobs, left))}, estimated from {source}"


def _smallest(runs: Sequence[Run], config: CompareConfig) -> list[str]:
    """The smallest difference detected with a power of 80%, in the metric if a pilot exists."""
    if len(config.arms) < 2:
        return []
    if config.stage == "screen":
        return ["nothing is tested: this is a screening"]
    size, family = config.replicates, config.tested_arms
    if size < MIN_REPLICATES_FOR_TEST:
        count = f"{size} replicate{'s' if size > 1 else ''}: intervals and no test"
        return [f"{count}; {MIN_REPLICATES_FOR_TEST} or more are tested, a claim needs ten or more"]
    level = ALPHA / len(family)
    power = f"{size} replicates detect with about 80% power, at level {ALPHA} / {len(family)}"
    words = f"smallest difference that {power}"
    pilot = _pilot(runs, config)
    if pilot is None:
        unit = Components(np.ones(()), np.zeros(()), np.zeros(()))
        of_one = smallest_difference(expected(unit, size, None), level)
        deviations = f"{of_one:.2f} standard deviations over replicates of the difference"
        return [f"{words}: {deviations} (more if test cases vary too)"]
    parts, limits, num_cases, replicates = pilot

    def shown(components: Sequence[Components]) -> str:
        found = [smallest_difference(expected(part, size, num_cases), level) for part in components]
        ends = f"{number(min(found))} to {number(max(found))} over the arms"
        return ends if len(found) > 1 else number(found[0])

    over = "" if num_cases is None else f" and {num_cases} test patients"
    source = f"from the variances of the {replicates} complete replicates{over}"
    cautious = f"{source}, with the replicate variance at its upper 80% limit"
    estimate = f"at its estimate, which is below the true variance in most small pilots: {shown(parts)}"
    return [f"{words}: {shown(limits)} in {config.metric}, {cautious} ({estimate})"]


def _pilot(
    runs: Sequence[Run], config: CompareConfig
) -> tuple[list[Components], list[Components], int | None, int] | None:
    """Variance components of the arms, also at their upper limit; numbers of test patients and replicates."""
    table = gather(runs, config)
    seeds = complete_replicates(table, config)
    if len(seeds) < 2:
        return None
    analysis = analyse(table, config, gather_cases(runs, config, seeds))
    assert analysis is not None, "two replicates are complete"
    reference = np.array(analysis.values[analysis.reference])
    parts, limits = [], []
    for arm in analysis.arms:
        if arm.name in analysis.family and arm.components is not None:
            differences = analysis.values[arm.name] - reference
            parts.append(arm.components)
            limits.append(upper_limit_of_replicates(differences, arm.components, analysis.num_cases))
    return parts, limits, analysis.num_cases, len(seeds)
