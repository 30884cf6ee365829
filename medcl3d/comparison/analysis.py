"""Numbers of a comparison and what may be said of them: over complete replicates, paired, never more than they carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medcl3d.comparison.plan import Cell, CompareConfig, cells, in_endpoint
from medcl3d.comparison.results import complete_replicates
from medcl3d.evaluation.statistics import (
    MIN_REPLICATES_FOR_CLAIM,
    MIN_REPLICATES_FOR_TEST,
    Interval,
    PairedTest,
    holm,
    mean_interval,
    paired_interval,
    paired_test,
)

ALPHA = 0.05


@dataclass(frozen=True)
class Numbers:
    """Means over the replicates of one arm, in one cell or at the endpoint; the reference has no difference."""

    mean: Interval
    difference: Interval | None


@dataclass(frozen=True)
class ArmNumbers:
    """One arm against the reference. `holm_p` is the paired t-test's p-value, adjusted over all arms."""

    name: str
    cells: dict[Cell, Numbers]
    endpoint: Numbers
    test: PairedTest | None = None
    holm_p: float | None = None


@dataclass(frozen=True)
class Analysis:
    """All arms, and the replicates that they are compared on."""

    metric: str
    higher: bool
    reference: str
    planned: int
    replicates: tuple[int, ...]
    cells: tuple[Cell, ...]
    arms: tuple[ArmNumbers, ...]

    def arm(self, name: str) -> ArmNumbers:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)


def analyse(table: pd.DataFrame, config: CompareConfig) -> Analysis | None:
    """Numbers over the replicates that are complete in all arms; None where there is not one.

    table: as `gather` makes it, one row a fine-tuning.
    """
    seeds = complete_replicates(table, config)
    if not seeds:
        return None
    keys = [key for key, _ in cells(config)[0]]
    values = {(row["arm"], tuple((key, row[key]) for key in keys), row["seed"]): row[config.metric] for row in table.to_dict("records")}

    def of(arm: str, chosen: Sequence[Cell]) -> np.ndarray:
        return np.array([np.mean([values[arm, cell, seed] for cell in chosen]) for seed in seeds])

    def numbers(arm: str, chosen: Sequence[Cell]) -> Numbers:
        own = of(arm, chosen)
        return Numbers(mean_interval(own), None if arm == config.reference else paired_interval(own, of(config.reference, chosen)))

    primary = [cell for cell in cells(config) if in_endpoint(cell, config)]
    others = [name for name in config.arms if name != config.reference]
    tests = {name: paired_test(of(name, primary), of(config.reference, primary)) for name in others}
    tested = {name: test for name, test in tests.items() if test is not None}
    adjusted = dict(zip(tested, holm([test.t for test in tested.values()]).tolist(), strict=True))
    grid = cells(config)
    arms = tuple(
        ArmNumbers(name, {cell: numbers(name, [cell]) for cell in grid}, numbers(name, primary), tests.get(name), adjusted.get(name))
        for name in config.arms
    )
    return Analysis(config.metric, config.better == "higher", config.reference, config.replicates, tuple(seeds), tuple(grid), arms)


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
    if arm.test is None or arm.holm_p is None:
        side = "leaves out" if difference.excludes_zero else "includes"
        few = f"No test, since there are fewer than {MIN_REPLICATES_FOR_TEST} replicates"
        return f"{few}: {what}, and its 95% interval {side} no difference, which is a hint at most."
    told = arm.holm_p < ALPHA
    p = f"Holm-adjusted {p_value(arm.holm_p)}, exact Wilcoxon unadjusted {p_value(arm.test.wilcoxon)}"
    verdict = f"{what}; the paired t-test {'tells' if told else 'does not tell'} it from chance ({p})"
    verdict = verdict[0].upper() + verdict[1:]
    if told and n < MIN_REPLICATES_FOR_CLAIM:
        return f"{verdict}, and a claim would need {MIN_REPLICATES_FOR_CLAIM} replicates."
    return f"{verdict}, and this speaks of these test cases only." if told else f"{verdict}."
