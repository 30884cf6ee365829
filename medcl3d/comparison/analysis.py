"""Numbers of a comparison and what may be said of them: over complete replicates and test cases, paired, never more than they carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from medcl3d.comparison.case_values import CaseValues, Key
from medcl3d.comparison.plan import Cell, CompareConfig, cells, family_of, in_endpoint
from medcl3d.comparison.results import complete_replicates
from medcl3d.evaluation.crossed import Components, Estimate, over_replicates, over_replicates_and_cases
from medcl3d.evaluation.labels import labels_needed
from medcl3d.evaluation.power import effect_size, smallest_difference
from medcl3d.evaluation.statistics import MIN_REPLICATES_FOR_CLAIM, MIN_REPLICATES_FOR_TEST, Interval, holm, wilcoxon_exact

ALPHA = 0.05


@dataclass(frozen=True)
class Numbers:
    """Means of one arm, in one cell or at the endpoint; the reference has no difference."""

    mean: Interval
    difference: Interval | None


@dataclass(frozen=True)
class PairedTest:
    """Two-sided p-values of one arm of the declared family against the reference.

    t          of the paired t with the variance of replicates and cases; holm: adjusted over the family
    wilcoxon   exact, over replicates alone and not adjusted: a check
    """

    t: float
    holm: float
    wilcoxon: float


@dataclass(frozen=True)
class ArmNumbers:
    """One arm against the reference; `test` is None where there is none, since few replicates or not of the family.

    effect    the endpoint's difference in standard deviations over replicates
    smallest  the difference that a comparison of this size tells from 0 in 80%, at the level that the family leaves
    labels    cell -> how many labels the reference would need, in words
    components  variances of the endpoint's difference
    """

    name: str
    cells: dict[Cell, Numbers]
    endpoint: Numbers
    test: PairedTest | None = None
    effect: Interval | None = None
    smallest: float | None = None
    labels: dict[Cell, str] = field(default_factory=dict)
    components: Components | None = None


@dataclass(frozen=True)
class Analysis:
    """All arms, and the replicates and cases that they are compared on.

    num_cases  test patients in the variance, None where it is of replicates alone; why_not: the reason then
    values     arm -> the endpoint, one number a replicate
    pairs      (arm, other) -> paired difference of the two at the endpoint, of every two arms: exploratory
    """

    metric: str
    higher: bool
    reference: str
    planned: int
    replicates: tuple[int, ...]
    cells: tuple[Cell, ...]
    arms: tuple[ArmNumbers, ...]
    family: tuple[str, ...]
    num_cases: int | None
    why_not: str
    pairs: dict[tuple[str, str], Interval]
    values: dict[str, tuple[float, ...]]
    stage: str = "confirm"

    def arm(self, name: str) -> ArmNumbers:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def tested(self) -> bool:
        """Some arm has a test."""
        return any(arm.test is not None for arm in self.arms)


class _Values:
    """The metric of every arm, cell and replicate (the mean over its folds), and of every test patient where that is known."""

    def __init__(self, table: pd.DataFrame, config: CompareConfig, cases: CaseValues, seeds: Sequence[int]):
        keys = [key for key, _ in cells(config)[0]]
        of_folds: dict[Key, list[float]] = {}
        for row in table.to_dict("records"):
            of_folds.setdefault((row["arm"], tuple((key, row[key]) for key in keys), row["seed"]), []).append(float(row[config.metric]))
        self.single = {key: float(np.mean(values)) for key, values in of_folds.items()}
        self.by_case, self.seeds = cases.of_run, seeds

    def replicates(self, arm: str, chosen: Sequence[Cell]) -> np.ndarray:
        """``[R]``: the mean over the cells, one number a replicate."""
        return np.array([np.mean([self.single[arm, cell, seed] for cell in chosen]) for seed in self.seeds])

    def estimate(self, arm: str, chosen: Sequence[Cell], other: str | None = None) -> Estimate:
        """The mean over the cells, or its difference to another arm, with the variance of all that is known to vary."""
        if self.by_case is None:
            return over_replicates(self.replicates(arm, chosen) - (self.replicates(other, chosen) if other else 0.0))
        known = self.by_case

        def table_of(name: str) -> np.ndarray:
            return np.array([np.mean([known[name, cell, seed] for cell in chosen], axis=0) for seed in self.seeds])

        return over_replicates_and_cases(table_of(arm) - (table_of(other) if other else 0.0))


def analyse(table: pd.DataFrame, config: CompareConfig, cases: CaseValues | None = None) -> Analysis | None:
    """Numbers over the replicates that are complete in all arms; None where there is not one.

    table: as `gather` makes it, one row a fine-tuning; cases: as `gather_cases` makes them.
    """
    seeds = complete_replicates(table, config)
    if not seeds:
        return None
    cases = cases or CaseValues()
    values = _Values(table, config, cases, seeds)
    grid, reference, family = cells(config), config.reference, family_of(config)
    primary = [cell for cell in grid if in_endpoint(cell, config)]
    differences = {name: values.estimate(name, primary, reference) for name in config.arms if name != reference}
    tests = _tests(values, differences, primary, config) if len(seeds) >= MIN_REPLICATES_FOR_TEST and config.stage == "confirm" else {}

    def numbers(arm: str, chosen: Sequence[Cell]) -> Numbers:
        difference = None if arm == reference else values.estimate(arm, chosen, reference).interval()
        return Numbers(values.estimate(arm, chosen).interval(), difference)

    def of_arm(name: str) -> ArmNumbers:
        by_cell = {cell: numbers(name, [cell]) for cell in grid}
        if name == reference:
            return ArmNumbers(name, by_cell, numbers(name, primary))
        paired = values.replicates(name, primary) - values.replicates(reference, primary)
        parts = differences[name].components
        level = ALPHA / len(family) if name in family else ALPHA
        smallest = smallest_difference(differences[name], level) if len(seeds) > 1 else None
        return ArmNumbers(name, by_cell, numbers(name, primary), tests.get(name), effect_size(paired), smallest, {}, parts)

    arms = [of_arm(name) for name in config.arms]
    pairs = {(a, b): values.estimate(a, primary, b).interval() for a in config.arms for b in config.arms if a != b}
    return Analysis(
        metric=config.metric,
        higher=config.better == "higher",
        reference=reference,
        planned=config.replicates,
        replicates=tuple(seeds),
        cells=tuple(grid),
        arms=tuple(_with_labels(arms, grid, config)),
        family=family,
        num_cases=len(cases.patients) if cases.of_run is not None else None,
        why_not=cases.why_not,
        pairs=pairs,
        values={name: tuple(values.replicates(name, primary).tolist()) for name in config.arms},
        stage=config.stage,
    )


def _tests(values: _Values, differences: dict[str, Estimate], primary: Sequence[Cell], config: CompareConfig) -> dict[str, PairedTest]:
    family = family_of(config)
    t = [float(differences[name].p_value()) for name in family]
    check = [wilcoxon_exact(values.replicates(name, primary), values.replicates(config.reference, primary)) for name in family]
    return {name: PairedTest(*row) for name, *row in zip(family, t, holm(t).tolist(), check, strict=True)}


def _with_labels(arms: Sequence[ArmNumbers], grid: Sequence[Cell], config: CompareConfig) -> list[ArmNumbers]:
    """The arms with how many labels the reference would need to be as good, where the number of labels varies."""
    reference = next(arm for arm in arms if arm.name == config.reference)
    curves: dict[Cell, dict[int, float]] = {}
    for cell in grid:
        count = dict(cell).get("num_labelled")
        if isinstance(count, int):
            rest = tuple((key, value) for key, value in cell if key != "num_labelled")
            curves.setdefault(rest, {})[count] = reference.cells[cell].mean.mean
    found = []
    for arm in arms:
        words: dict[Cell, str] = {}
        for cell in grid:
            curve = curves.get(tuple((key, value) for key, value in cell if key != "num_labelled"), {})
            if arm is not reference and len(curve) > 1:
                word, count = labels_needed(curve, arm.cells[cell].mean.mean, config.better == "higher")
                words[cell] = f"{'' if word == 'at' else word + ' '}{count:.0f}" if word != "at" or count >= 10 else f"{count:.1f}"
        found.append(replace(arm, labels=words))
    return found


def number(value: float, sign: bool = False) -> str:
    """A value with three decimals (fewer where it is large), with a true minus."""
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def with_interval(interval: Interval, sign: bool = False) -> str:
    """``0.712 [0.690, 0.734]``, or the mean alone where there is no interval."""
    mean = number(interval.mean, sign)
    return f"{mean} [{number(interval.low, sign)}, {number(interval.high, sign)}]" if interval.known else mean


def p_value(p: float) -> str:
    """``p = 0.012`` or ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def answer(analysis: Analysis) -> tuple[str, str]:
    """Two sentences: what was seen, and how certain it is."""
    sign = 1 if analysis.higher else -1
    best = max(analysis.arms, key=lambda arm: sign * arm.endpoint.mean.mean)
    reference = analysis.arm(analysis.reference)
    count = f"{len(analysis.replicates)} replicate{'s' if len(analysis.replicates) > 1 else ''}"
    level = f"mean {analysis.metric} of {number(reference.endpoint.mean.mean)}"
    if len(analysis.arms) == 1:
        return f"Over {count} the only arm, “{reference.name}”, has a {level}.", "There is nothing to compare it with."
    if best is reference:
        seen = f"Over {count} no arm does better than the reference “{reference.name}” ({level})."
        best = max((arm for arm in analysis.arms if arm is not reference), key=lambda arm: sign * arm.endpoint.mean.mean)
    else:
        means = f"{number(best.endpoint.mean.mean)}, against {number(reference.endpoint.mean.mean)} of “{reference.name}”"
        seen = f"Over {count} “{best.name}” has the best mean {analysis.metric}: {means}."
    return seen, _certainty(analysis, best)


def _certainty(analysis: Analysis, arm: ArmNumbers) -> str:
    difference = arm.endpoint.difference
    assert difference is not None, "the reference has no difference to itself"
    what = f"the difference of “{arm.name}” is {with_interval(difference, sign=True)}"
    n = len(analysis.replicates)
    if n == 1:
        return f"One replicate cannot tell a difference from chance ({what}, without an interval): it ranks nothing."
    weight = "does not hold 0, which is a hint at most" if difference.excludes_zero else "holds 0"
    hint = f"{what}, and its 95% interval {weight}"
    if n < MIN_REPLICATES_FOR_TEST:
        return f"No test, since there are fewer than {MIN_REPLICATES_FOR_TEST} replicates: {hint}."
    if analysis.stage == "screen":
        return f"No test, since this is a screening that only picks candidates: {hint}."
    if arm.test is None:
        sign = 1 if analysis.higher else -1
        inside = max((analysis.arm(name) for name in analysis.family), key=lambda a: sign * a.endpoint.mean.mean)
        outside = f"“{arm.name}” is outside the declared family, so that its difference of {with_interval(difference, sign=True)} is a hint"
        within = _certainty(analysis, inside)
        return f"{outside}; within the family, {within[0].lower()}{within[1:]}"
    told = arm.test.holm < ALPHA
    p = f"Holm-adjusted {p_value(arm.test.holm)}, exact Wilcoxon unadjusted {p_value(arm.test.wilcoxon)}"
    verdict = f"{what}; the paired t-test {'tells' if told else 'does not tell'} it from chance ({p})"
    verdict = verdict[0].upper() + verdict[1:]
    if told and n < MIN_REPLICATES_FOR_CLAIM:
        return f"{verdict}, and a claim would need {MIN_REPLICATES_FOR_CLAIM} replicates."
    if told and analysis.num_cases is None:
        return f"{verdict}, and this speaks of these test cases only."
    return f"{verdict}."
