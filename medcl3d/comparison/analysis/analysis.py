"""Statistical analysis of a comparison: paired differences over complete replicates and test cases, with
tests.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from medcl3d.comparison.analysis.case_values import CaseValues, Key
from medcl3d.comparison.analysis.results import complete_replicates
from medcl3d.comparison.plan.arm_types import ArmType, arm_types_of
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.runs import Cell, cell_words, cells, endpoint_cells, family_of
from medcl3d.evaluation.statistics.crossed import (
    Components,
    Estimate,
    over_replicates,
    over_replicates_and_cases,
)
from medcl3d.evaluation.statistics.endpoint_order import in_order
from medcl3d.evaluation.statistics.equivalence import Equivalence, equivalence_p
from medcl3d.evaluation.statistics.intervals import MIN_REPLICATES_FOR_TEST, Interval, holm, wilcoxon_exact
from medcl3d.evaluation.statistics.label_efficiency import labels_needed
from medcl3d.evaluation.statistics.outliers import deviations, far
from medcl3d.evaluation.statistics.power import effect_size, smallest_difference
from medcl3d.evaluation.statistics.rank_stability import RankStability, rank_stability

ALPHA = 0.05


@dataclass(frozen=True)
class Numbers:
    """Means of one arm, in one cell or at the endpoint; the reference has no difference."""

    mean: Interval
    difference: Interval | None


@dataclass(frozen=True)
class PairedTest:
    """Two-sided p-values of one arm of the preregistered family against the reference.

    t          paired t-test with the variance of replicates and cases; holm: adjusted over the family, and
               over the
               endpoints that follow, if some were declared (Holm's procedure is the case of one endpoint)
    wilcoxon   exact, over replicates only and not adjusted: a check
    """

    t: float
    holm: float
    wilcoxon: float


@dataclass(frozen=True)
class ArmNumbers:
    """One arm against the reference; `test` is None for too few replicates or outside the family.

    effect    the endpoint's difference in standard deviations over replicates
    smallest  the difference that a comparison of this size detects with a power of 80%, at the level that the
              family leaves
    labels    cell -> number of labels that the baseline would need, as text
    components  variances of the endpoint's difference
    equivalence  whether the difference is smaller than the margin, if one was declared; tested for arms of
                 the family only
    """

    name: str
    cells: dict[Cell, Numbers]
    endpoint: Numbers
    test: PairedTest | None = None
    effect: Interval | None = None
    smallest: float | None = None
    labels: dict[Cell, str] = field(default_factory=dict)
    components: Components | None = None
    equivalence: Equivalence | None = None


@dataclass(frozen=True)
class FarReplicate:
    """A replicate whose value is far from its arm's others; away: distance in scaled median absolute
    deviations.
    """

    arm: str
    seed: int
    value: float
    median: float
    away: float


@dataclass(frozen=True)
class LaterEndpoint:
    """An endpoint that is tested after the primary one.

    differences  arm of the family -> its paired difference to the reference
    adjusted     arm -> p, adjusted over all arms and endpoints; only for arms that were rejected at the
                 previous endpoint
    why_not      reason for which nothing is tested here although the primary endpoint is, "" otherwise
    """

    metric: str
    higher: bool
    cells: tuple[Cell, ...]
    differences: dict[str, Interval]
    adjusted: dict[str, float]
    why_not: str

    @property
    def words(self) -> str:
        """Metric, direction and cells."""
        cells = "; ".join(map(cell_words, self.cells))
        return f"{self.metric} ({'higher' if self.higher else 'lower'} is better): {cells}"


@dataclass(frozen=True)
class Analysis:
    """All arms, with the replicates and cases on which they are compared.

    num_cases  test patients in the variance, None if only replicates vary in it; why_not: the reason in that
               case
    values     arm -> the endpoint, one number per replicate
    pairs      (arm, other) -> paired difference of the two at the endpoint, for all pairs of arms:
               exploratory
    arm_types  arm -> its type: a pair strategy or a control
    untested   reason for which nothing is tested although enough replicates were planned, "" otherwise
    margin     the smallest difference that matters, None if none was declared
    margin_untested  reason for which no arm is called equivalent, "" otherwise
    order      stability of the arms' order, None for fewer than three replicates
    far        replicates far from their arm's others; without: the same analysis without these replicates, in
               all arms
    later      the endpoints that follow the primary one, in their preregistered order
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
    arm_types: dict[str, ArmType]
    stage: str = "confirm"
    untested: str = ""
    margin: float | None = None
    margin_untested: str = ""
    order: RankStability | None = None
    far: tuple[FarReplicate, ...] = ()
    without: Analysis | None = None
    later: tuple[LaterEndpoint, ...] = ()

    def arm(self, name: str) -> ArmNumbers:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def baseline(self) -> str:
        """The arm whose labels are counted: the one without pretraining, or the reference if all are
        pretrained.
        """
        return next((name for name, kind in self.arm_types.items() if kind == "scratch"), self.reference)

    @property
    def tested(self) -> bool:
        """Whether an arm has a test."""
        return any(arm.test is not None for arm in self.arms)


class _Values:
    """The metric of every arm, cell and replicate (mean over folds), and of every test patient if known."""

    def __init__(self, table: pd.DataFrame, config: CompareConfig, cases: CaseValues, seeds: Sequence[int]):
        keys = [key for key, _ in cells(config)[0]]
        of_folds: dict[Key, list[float]] = {}
        for row in table.to_dict("records"):
            of_folds.setdefault((row["arm"], tuple((key, row[key]) for key in keys), row["seed"]), []).append(
                float(row[config.metric])
            )
        self.single = {key: float(np.mean(values)) for key, values in of_folds.items()}
        self.by_case, self.seeds = cases.of_run, seeds

    def replicates(self, arm: str, chosen: Sequence[Cell]) -> np.ndarray:
        """``[R]``: the mean over the cells, one number per replicate."""
        return np.array([np.mean([self.single[arm, cell, seed] for cell in chosen]) for seed in self.seeds])

    def estimate(self, arm: str, chosen: Sequence[Cell], other: str | None = None) -> Estimate:
        """The mean over the cells, or its difference to another arm, with the variance of replicates and
        cases.
        """
        values = self.table(arm, chosen) - (self.table(other, chosen) if other else 0.0)
        return over_replicates(values) if self.by_case is None else over_replicates_and_cases(values)

    def table(self, arm: str, chosen: Sequence[Cell]) -> np.ndarray:
        """``[R, C]``: one number per replicate and test patient; ``[R]`` if patients are not known."""
        known = self.by_case
        if known is None:
            return self.replicates(arm, chosen)
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
    untested = untested or (cases or CaseValues()).untested or _not_complete(len(seeds), config.replicates)
    given = _Given(
        table,
        config,
        cases or CaseValues(),
        dict(arm_types or arm_types_of((), config)),
        untested,
        later_cases,
        margin_untested,
    )
    found = _over(seeds, given)
    flagged = _far(found)
    kept = [seed for seed in seeds if seed not in {one.seed for one in flagged}]
    return replace(found, far=flagged, without=_over(kept, given) if flagged and kept else None)


@dataclass(frozen=True)
class _Given:
    """What `analyse` received, with defaults filled in."""

    table: pd.DataFrame
    config: CompareConfig
    cases: CaseValues
    arm_types: dict[str, ArmType]
    untested: str
    later_cases: Sequence[CaseValues]
    margin_untested: str


def _over(seeds: Sequence[int], given: _Given) -> Analysis:
    """The analysis over the given complete replicates."""
    config, reference, family = given.config, given.config.reference, family_of(given.config)
    values = _Values(given.table, config, given.cases, seeds)
    primary = endpoint_cells(config)
    differences = {
        name: values.estimate(name, primary, reference) for name in config.arms if name != reference
    }
    may_test = len(seeds) >= MIN_REPLICATES_FOR_TEST and config.stage == "confirm" and not given.untested
    later = _later(given.table, config, seeds, given.later_cases)
    raw = {name: float(differences[name].p_value()) for name in family}
    adjusted = _adjusted(raw, later) if may_test and family else {}
    tests = {
        name: PairedTest(raw[name], float(p[0]), _wilcoxon(values, name, primary, config))
        for name, p in adjusted.items()
    }
    equivalent = _equivalence(differences, family, config, may_test and not given.margin_untested)
    arms = {name: _numbers(name, values, primary, config) for name in config.arms}
    for name, difference in differences.items():
        level = ALPHA / len(family) if name in family else ALPHA
        arms[name] = replace(
            arms[name],
            test=tests.get(name),
            effect=effect_size(values.replicates(name, primary) - values.replicates(reference, primary)),
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
        num_cases=None if given.cases.of_run is None else len(given.cases.patients),
        why_not=given.cases.why_not,
        pairs={
            (a, b): values.estimate(a, primary, b).interval()
            for a, b in itertools.permutations(config.arms, 2)
        },
        values={name: tuple(values.replicates(name, primary).tolist()) for name in config.arms},
        arm_types=given.arm_types,
        stage=config.stage,
        untested=given.untested,
        margin=config.margin,
        margin_untested=given.margin_untested,
        order=rank_stability(np.stack([values.table(name, primary) for name in config.arms]), config.higher),
        later=tuple(one.tested(adjusted, index) for index, one in enumerate(later, 1)),
    )
    return replace(found, arms=tuple(_with_labels(found)))


def _adjusted(raw: Mapping[str, float], later: Sequence[_Next]) -> dict[str, np.ndarray]:
    """Arm of the family -> its p-values at the primary and the next endpoints, adjusted over all of them."""
    rows = [[p, *(one.p.get(name, 1.0) for one in later)] for name, p in raw.items()]
    return dict(zip(raw, in_order(rows), strict=True))


def _numbers(name: str, values: _Values, primary: Sequence[Cell], config: CompareConfig) -> ArmNumbers:
    """The means of an arm and its differences to the reference, in every cell and at the endpoint."""

    def over(chosen: Sequence[Cell]) -> Numbers:
        mean = values.estimate(name, chosen).interval()
        if name == config.reference:
            return Numbers(mean, None)
        return Numbers(mean, values.estimate(name, chosen, config.reference).interval())

    return ArmNumbers(name, {cell: over([cell]) for cell in cells(config)}, over(primary))


def _far(analysis: Analysis) -> tuple[FarReplicate, ...]:
    """The flagged replicates of all arms at the endpoint, ordered by replicate."""
    found = []
    for arm, values in analysis.values.items():
        median, away = float(np.median(values)), deviations(values)
        rows = zip(analysis.replicates, values, away, far(values), strict=True)
        found += [
            FarReplicate(arm, seed, value, median, float(distance))
            for seed, value, distance, is_far in rows
            if is_far
        ]
    return tuple(sorted(found, key=lambda one: one.seed))


def _equivalence(
    differences: dict[str, Estimate], family: Sequence[str], config: CompareConfig, may_test: bool
) -> dict[str, Equivalence]:
    """Two one-sided tests per arm against the reference, Holm-adjusted over the family; others have only the
    interval.
    """
    if config.margin is None:
        return {}
    p = [float(equivalence_p(differences[name], config.margin)) for name in family] if may_test else []
    adjusted = dict(zip(family, holm(p).tolist(), strict=True)) if may_test else {}
    return {
        name: Equivalence(estimate.interval(1 - 2 * ALPHA), adjusted.get(name))
        for name, estimate in differences.items()
    }


@dataclass(frozen=True)
class _Next:
    """One of the next endpoints before its p-values are adjusted; p is empty if nothing is tested there."""

    config: CompareConfig
    differences: dict[str, Interval]
    p: dict[str, float]
    why_not: str

    def tested(self, adjusted: Mapping[str, np.ndarray], index: int) -> LaterEndpoint:
        reached = {name: float(p[index]) for name, p in adjusted.items() if self.p and p[index - 1] < ALPHA}
        chosen = tuple(endpoint_cells(self.config))
        return LaterEndpoint(
            self.config.metric, self.config.higher, chosen, self.differences, reached, self.why_not
        )


def _later(
    table: pd.DataFrame, config: CompareConfig, seeds: Sequence[int], cases: Sequence[CaseValues]
) -> list[_Next]:
    """The next endpoints in their order, each over the replicates of `seeds` in which it is defined in all
    arms.
    """
    found = []
    for one, known in zip(config.later, cases or [CaseValues()] * len(config.next_endpoints), strict=True):
        defined = [seed for seed in seeds if seed in complete_replicates(table, one)]
        why_not = known.untested or (
            "" if len(defined) == len(seeds) else f"{one.metric} is not defined in some runs"
        )
        if not defined:
            found.append(_Next(one, {}, {}, why_not))
            continue
        values = _Values(table, one, known, defined)
        chosen = endpoint_cells(one)
        estimates = {name: values.estimate(name, chosen, config.reference) for name in family_of(config)}
        p = {} if why_not else {name: float(estimate.p_value()) for name, estimate in estimates.items()}
        found.append(
            _Next(one, {name: estimate.interval() for name, estimate in estimates.items()}, p, why_not)
        )
    return found


def _not_complete(complete: int, planned: int) -> str:
    """The reason for which an incomplete comparison is not tested, "" if it is complete or too small for
    tests.

    Testing after 6, 7, ... and 10 replicates finds a difference in 11% of comparisons without one.
    """
    missing = planned - complete
    if not missing or planned < MIN_REPLICATES_FOR_TEST:
        return ""
    are = "is" if missing == 1 else "are"
    return (
        f"{missing} of {planned} planned replicates {are} missing, and only a complete comparison is tested"
    )


def _wilcoxon(values: _Values, name: str, primary: Sequence[Cell], config: CompareConfig) -> float:
    return wilcoxon_exact(values.replicates(name, primary), values.replicates(config.reference, primary))


def _with_labels(analysis: Analysis) -> list[ArmNumbers]:
    """The arms with the number of labels that the baseline would need to be as good, if the number of labels
    varies.
    """
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
                words[cell] = (
                    f"{'' if word == 'at' else word + ' '}{count:.0f}"
                    if word != "at" or count >= 10
                    else f"{count:.1f}"
                )
        found.append(replace(arm, labels=words))
    return found


def _but_labels(cell: Cell) -> Cell:
    return tuple((key, value) for key, value in cell if key != "num_labelled")
