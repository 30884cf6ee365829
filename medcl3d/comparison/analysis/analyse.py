"""Statistical analysis of a comparison: paired differences over complete replicates and test cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd

from medcl3d.comparison.analysis.analysis import (
    ALPHA,
    Analysis,
    ArmNumbers,
    Equivalence,
    FarReplicate,
    LaterEndpoint,
    Numbers,
    PairedTest,
)
from medcl3d.comparison.analysis.case_values import CaseValues, Key
from medcl3d.comparison.analysis.results import complete_replicates
from medcl3d.comparison.plan.arm_types import ArmType, arm_types_of
from medcl3d.comparison.plan.cells import Cell, cells, endpoint_cells
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.evaluation.metrics.directions import largest_of
from medcl3d.evaluation.statistics.crossed import Estimate, over_replicates, over_replicates_and_cases
from medcl3d.evaluation.statistics.intervals import (
    MIN_REPLICATES_FOR_TEST,
    Interval,
    holm,
    in_order,
    wilcoxon_exact,
)
from medcl3d.evaluation.statistics.label_efficiency import labels_needed
from medcl3d.evaluation.statistics.outliers import deviations, far
from medcl3d.evaluation.statistics.power import effect_size, smallest_difference
from medcl3d.evaluation.statistics.rank_stability import rank_stability


class _Values:
    """The metric of every arm, cell and replicate (mean over folds), and of every test patient if known."""

    def __init__(self, table: pd.DataFrame, config: CompareConfig, cases: CaseValues, seeds: Sequence[int]):
        keys = [key for key, _ in cells(config)[0]]
        of_folds: dict[Key, list[float]] = {}
        for row in table.to_dict("records"):
            key = row["arm"], tuple((key, row[key]) for key in keys), row["seed"]
            of_folds.setdefault(key, []).append(float(row[config.metric]))
        self.single = {key: float(np.mean(values)) for key, values in of_folds.items()}
        self.by_case, self.seeds = cases.of_run, seeds

    def replicates(self, arm: str, chosen: Sequence[Cell]) -> np.ndarray:
        """``[R]``: the mean over the cells, one number per replicate."""
        return np.array([np.mean([self.single[arm, cell, seed] for cell in chosen]) for seed in self.seeds])

    def estimate(self, arm: str, chosen: Sequence[Cell], other: str | None = None) -> Estimate:
        """The mean over the cells, or its difference to another arm, with its variance."""
        values = self.table(arm, chosen) - (self.table(other, chosen) if other else 0.0)
        return over_replicates(values) if self.by_case is None else over_replicates_and_cases(values)

    def table(self, arm: str, chosen: Sequence[Cell]) -> np.ndarray:
        """``[R, C]``: one number per replicate and test patient; ``[R]`` if patients are not known."""
        known: Mapping[Key, Any] = self.single if self.by_case is None else self.by_case
        return np.array([np.mean([known[arm, cell, seed] for cell in chosen], axis=0) for seed in self.seeds])


def analyse(
    table: pd.DataFrame,
    config: CompareConfig,
    cases: CaseValues | None = None,
    arm_types: Mapping[str, ArmType] | None = None,
    untested: str = "",
    later_cases: Sequence[CaseValues] = (),
    margin_untested: str = "",
) -> Analysis | None:
    """Analyse the replicates that are complete in all arms; None if none is.

    table: from `gather`, one row per measurement; cases: from `gather_cases`; arm_types: from `arm_types_of`;
    untested: reason for which there is no test, as the end of a sentence ("No test: ...");
    later_cases: cases of the next endpoints; margin_untested: reason for which no arm is called equivalent.
    """
    seeds = complete_replicates(table, config)
    if not seeds:
        return None
    cases = cases or CaseValues()
    over = partial(
        _over,
        table=table,
        config=config,
        cases=cases,
        arm_types=dict(arm_types or arm_types_of((), config)),
        untested=untested or cases.untested or _not_complete(len(seeds), config.replicates),
        later_cases=later_cases,
        margin_untested=margin_untested,
    )
    found = over(seeds)
    flagged = _far(found)
    kept = [seed for seed in seeds if seed not in {one.seed for one in flagged}]
    return replace(found, far=flagged, without=over(kept) if flagged and kept else None)


def _over(
    seeds: Sequence[int],
    *,
    table: pd.DataFrame,
    config: CompareConfig,
    cases: CaseValues,
    arm_types: dict[str, ArmType],
    untested: str,
    later_cases: Sequence[CaseValues],
    margin_untested: str,
) -> Analysis:
    """The analysis over the given complete replicates."""
    reference, family = config.reference, config.tested_arms
    values = _Values(table, config, cases, seeds)
    primary = endpoint_cells(config)
    differences = {
        name: values.estimate(name, primary, reference) for name in config.arms if name != reference
    }
    may_test = len(seeds) >= MIN_REPLICATES_FOR_TEST and config.stage == "confirm" and not untested
    later = _later(table, config, seeds, later_cases)
    of_replicates = {name: values.replicates(name, primary) for name in config.arms}
    # An arm of the family that is not compared counts with p = 1: the others keep their adjustment.
    here = [name for name in family if name in differences]
    raw = {name: float(differences[name].p_value()) for name in here} if may_test else {}
    adjusted = _adjusted(raw, later, len(family) - len(here))
    tests: dict[str, PairedTest] = {}
    for name, p in adjusted.items():
        check = wilcoxon_exact(of_replicates[name], of_replicates[reference])
        tests[name] = PairedTest(raw[name], float(p[0]), check)
    equivalent = _equivalence(differences, config, may_test and not margin_untested)
    arms = {name: _numbers(name, values, primary, config) for name in config.arms}
    for name, difference in differences.items():
        level = ALPHA / len(family) if name in family else ALPHA
        arms[name] = replace(
            arms[name],
            test=tests.get(name),
            effect=effect_size(of_replicates[name] - of_replicates[reference]),
            smallest=smallest_difference(difference, level) if len(seeds) > 1 else None,
            components=difference.components,
            equivalence=equivalent.get(name),
        )
    found = Analysis(
        metric=config.metric,
        higher=config.higher,
        reference=reference,
        planned=config.replicates,
        replicates=tuple(seeds),
        cells=tuple(cells(config)),
        arms=tuple(arms.values()),
        family=family,
        num_cases=None if cases.of_run is None else len(cases.patients),
        why_not=cases.why_not,
        pairs={(a, b): values.estimate(a, primary, b).interval() for a, b in permutations(config.arms, 2)},
        values={name: tuple(found.tolist()) for name, found in of_replicates.items()},
        arm_types=arm_types,
        stage=config.stage,
        untested=untested,
        margin=config.margin,
        margin_untested=margin_untested,
        order=rank_stability(np.stack([values.table(name, primary) for name in config.arms]), config.higher),
        later=tuple(one.tested(adjusted, index) for index, one in enumerate(later, 1)),
    )
    return replace(found, arms=tuple(_with_labels(found)))


def _adjusted(raw: Mapping[str, float], later: Sequence[_Next], num_absent: int) -> dict[str, np.ndarray]:
    """Arm of the family -> its p-values at the primary and the next endpoints, adjusted over all of them."""
    rows = [[p, *(one.p.get(name, 1.0) for one in later)] for name, p in raw.items()]
    absent = [[1.0] * (1 + len(later))] * num_absent
    return dict(zip(raw, in_order([*rows, *absent]), strict=False)) if rows else {}


def _numbers(name: str, values: _Values, primary: Sequence[Cell], config: CompareConfig) -> ArmNumbers:
    """The means of an arm and its differences to the reference, in every cell and at the endpoint."""

    largest = largest_of(config.metric)

    def over(chosen: Sequence[Cell]) -> Numbers:
        mean = (
            values.estimate(name, chosen)
            .interval()
            .within(0.0 if math.isfinite(largest) else -largest, largest)
        )
        if name == config.reference:
            return Numbers(mean, None)
        difference = values.estimate(name, chosen, config.reference).interval()
        return Numbers(mean, difference.within(-largest, largest))

    return ArmNumbers(name, {cell: over([cell]) for cell in cells(config)}, over(primary))


def _far(analysis: Analysis) -> tuple[FarReplicate, ...]:
    """The flagged replicates of all arms at the endpoint, ordered by replicate."""
    found = []
    for arm, values in analysis.values.items():
        median, away = float(np.median(values)), deviations(values)
        for seed, value, distance, is_far in zip(analysis.replicates, values, away, far(values), strict=True):
            if is_far:
                found.append(FarReplicate(arm, seed, value, median, float(distance)))
    return tuple(sorted(found, key=lambda one: one.seed))


def _equivalence(
    differences: dict[str, Estimate], config: CompareConfig, may_test: bool
) -> dict[str, Equivalence]:
    """Two one-sided tests per arm, Holm-adjusted over the family; other arms have only the interval."""
    if config.margin is None:
        return {}
    family = [name for name in config.tested_arms if name in differences]
    p = [float(differences[name].equivalence_p(config.margin)) for name in family] if may_test else []
    absent = [1.0] * (len(config.tested_arms) - len(family))
    adjusted = dict(zip(family, holm([*p, *absent]).tolist(), strict=False)) if may_test and p else {}
    intervals = {name: estimate.interval(1 - 2 * ALPHA) for name, estimate in differences.items()}
    return {name: Equivalence(interval, adjusted.get(name)) for name, interval in intervals.items()}


@dataclass(frozen=True)
class _Next:
    """One of the next endpoints before its p-values are adjusted; p is empty if nothing is tested there."""

    config: CompareConfig
    differences: dict[str, Interval]
    p: dict[str, float]
    why_not: str

    def tested(self, adjusted: Mapping[str, np.ndarray], index: int) -> LaterEndpoint:
        reached = {name: float(p[index]) for name, p in adjusted.items() if self.p and p[index - 1] < ALPHA}
        config, chosen = self.config, tuple(endpoint_cells(self.config))
        return LaterEndpoint(config.metric, config.higher, chosen, self.differences, reached, self.why_not)


def _later(
    table: pd.DataFrame, config: CompareConfig, seeds: Sequence[int], cases: Sequence[CaseValues]
) -> list[_Next]:
    """The next endpoints in their order, each over the replicates in which it is defined in all arms."""
    found = []
    for one, known in zip(config.later, cases or [CaseValues()] * len(config.next_endpoints), strict=True):
        defined = [seed for seed in seeds if seed in complete_replicates(table, one)]
        why_not = known.untested
        if not why_not and len(defined) < len(seeds):
            why_not = f"{one.metric} is not defined in some runs"
        estimates: dict[str, Estimate] = {}
        if defined:
            values, chosen = _Values(table, one, known, defined), endpoint_cells(one)
            family = [name for name in config.tested_arms if name in config.arms]
            estimates = {name: values.estimate(name, chosen, config.reference) for name in family}
        intervals = {name: estimate.interval() for name, estimate in estimates.items()}
        p = {} if why_not else {name: float(estimate.p_value()) for name, estimate in estimates.items()}
        found.append(_Next(one, intervals, p, why_not))
    return found


def _not_complete(complete: int, planned: int) -> str:
    """The reason for which an incomplete comparison is not tested, "" if it is complete or too small."""
    # Testing after 6, 7, ... and 10 replicates finds a difference in 11% of comparisons without one.
    missing = planned - complete
    if not missing or planned < MIN_REPLICATES_FOR_TEST:
        return ""
    lack = f"{missing} of {planned} planned replicates {'is' if missing == 1 else 'are'} missing"
    return f"{lack}, and only a complete comparison is tested"


def _with_labels(analysis: Analysis) -> list[ArmNumbers]:
    """The arms with the number of labels that the baseline would need, if the number of labels varies."""
    baseline = analysis.arm(analysis.baseline)
    curves: dict[Cell, dict[int, float]] = {}
    for cell in analysis.cells:
        count = dict(cell).get("num_labelled")
        if isinstance(count, int):
            curves.setdefault(_but_labels(cell), {})[count] = baseline.cells[cell].mean.mean
    found = []
    for arm in analysis.arms:
        words: dict[Cell, str] = {}
        for cell in analysis.cells:
            curve = curves.get(_but_labels(cell), {})
            if arm is not baseline and len(curve) > 1:
                word, count = labels_needed(curve, arm.cells[cell].mean.mean, analysis.higher)
                digits = 1 if word == "at" and count < 10 else 0
                words[cell] = f"{word} {count:.{digits}f}".removeprefix("at ")
        found.append(replace(arm, labels=words))
    return found


def _but_labels(cell: Cell) -> Cell:
    return tuple((key, value) for key, value in cell if key != "num_labelled")
