"""Numbers of a comparison and what may be said of them: over complete replicates and test cases, paired, never more than they carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from medcl3d.comparison.case_values import CaseValues, Key
from medcl3d.comparison.config import CompareConfig
from medcl3d.comparison.kinds import Kind, kinds_of
from medcl3d.comparison.plan import Cell, cells, family_of, in_endpoint
from medcl3d.comparison.results import complete_replicates
from medcl3d.evaluation.crossed import Components, Estimate, over_replicates, over_replicates_and_cases
from medcl3d.evaluation.labels import labels_needed
from medcl3d.evaluation.power import effect_size, smallest_difference
from medcl3d.evaluation.statistics import MIN_REPLICATES_FOR_TEST, Interval, holm, wilcoxon_exact

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
    kinds      arm -> what it is: a way to pair, or which control
    untested   why nothing is tested although enough replicates were planned, "" where that is no question
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
    kinds: dict[str, Kind]
    stage: str = "confirm"
    untested: str = ""

    def arm(self, name: str) -> ArmNumbers:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def baseline(self) -> str:
        """Whose labels are counted: the arm that is not pretrained, or the reference where all are."""
        return next((name for name, kind in self.kinds.items() if kind == "scratch"), self.reference)

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


def analyse(
    table: pd.DataFrame,
    config: CompareConfig,
    cases: CaseValues | None = None,
    kinds: Mapping[str, Kind] | None = None,
    untested: str = "",
) -> Analysis | None:
    """Numbers over the replicates that are complete in all arms; None where there is not one.

    table: as `gather` makes it, one row a fine-tuning; cases: as `gather_cases` makes them; kinds: of `kinds_of`;
    untested: a reason for which there is no test, as the rest of a sentence that begins so.
    """
    seeds = complete_replicates(table, config)
    if not seeds:
        return None
    cases = cases or CaseValues()
    values = _Values(table, config, cases, seeds)
    grid, reference, family = cells(config), config.reference, family_of(config)
    primary = [cell for cell in grid if in_endpoint(cell, config)]
    differences = {name: values.estimate(name, primary, reference) for name in config.arms if name != reference}
    untested = untested or cases.untested or _not_complete(len(seeds), config.replicates)
    may_test = len(seeds) >= MIN_REPLICATES_FOR_TEST and config.stage == "confirm" and not untested
    tests = _tests(values, differences, primary, config) if may_test else {}

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
    known = dict(kinds or kinds_of((), config))
    pairs = {(a, b): values.estimate(a, primary, b).interval() for a in config.arms for b in config.arms if a != b}
    found = Analysis(
        metric=config.metric,
        higher=config.higher,
        reference=reference,
        planned=config.replicates,
        replicates=tuple(seeds),
        cells=tuple(grid),
        arms=tuple(arms),
        family=family,
        num_cases=len(cases.patients) if cases.of_run is not None else None,
        why_not=cases.why_not,
        pairs=pairs,
        values={name: tuple(values.replicates(name, primary).tolist()) for name in config.arms},
        kinds=known,
        stage=config.stage,
        untested=untested,
    )
    return replace(found, arms=tuple(_with_labels(found)))


def _not_complete(complete: int, planned: int) -> str:
    """Tests at several looks find differences where there are none: under no difference, looks at 6, 7, ... 10 replicates in 11%."""
    missing = planned - complete
    if not missing or planned < MIN_REPLICATES_FOR_TEST:
        return ""
    return f"{missing} of {planned} planned replicates {'is' if missing == 1 else 'are'} missing, and a look before the end is no test"


def _tests(values: _Values, differences: dict[str, Estimate], primary: Sequence[Cell], config: CompareConfig) -> dict[str, PairedTest]:
    family = family_of(config)
    t = [float(differences[name].p_value()) for name in family]
    check = [wilcoxon_exact(values.replicates(name, primary), values.replicates(config.reference, primary)) for name in family]
    return {name: PairedTest(*row) for name, *row in zip(family, t, holm(t).tolist(), check, strict=True)}


def _with_labels(analysis: Analysis) -> list[ArmNumbers]:
    """The arms with how many labels the baseline would need to be as good, where the number of labels varies."""
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
                words[cell] = f"{'' if word == 'at' else word + ' '}{count:.0f}" if word != "at" or count >= 10 else f"{count:.1f}"
        found.append(replace(arm, labels=words))
    return found


def _but_labels(cell: Cell) -> Cell:
    return tuple((key, value) for key, value in cell if key != "num_labelled")
