"""The ranking table of a comparison: arms at the primary endpoint, best first, with controls marked."""

from __future__ import annotations

from dataclasses import dataclass

from medcl3d.comparison.analysis.analysis import Analysis, ArmNumbers, PairedTest
from medcl3d.comparison.plan.arm_types import ArmType
from medcl3d.evaluation.statistics.intervals import Interval

WORDS: dict[ArmType, str] = {
    "pairs": "",
    "scratch": "control: not pretrained",
    "augmented": "control: no choice of pairs",
    "placebo": "control: placebo",
    "mae": "control: no pairs",
}


@dataclass(frozen=True)
class Row:
    """One row per arm. place: 1 for the best mean, shared by equal ones; words: reference or type of control,
    or "".
    """

    place: int
    name: str
    words: str
    mean: Interval
    difference: Interval | None
    role: str
    effect: Interval | None
    smallest: float | None
    test: PairedTest | None


@dataclass(frozen=True)
class RankingTable:
    """Rows, best first, and which columns are not empty.

    effects   some arm has a standardised difference (needs three replicates)
    tested    some arm is tested: only then does the table have roles, p-values and the smallest detectable
              difference
    """

    rows: tuple[Row, ...]
    effects: bool
    tested: bool


def ranking_table(analysis: Analysis) -> RankingTable:
    """All arms ordered by their mean at the endpoint."""
    means = {arm.name: arm.endpoint.mean.mean * (1 if analysis.higher else -1) for arm in analysis.arms}
    rows = [
        _row(analysis, arm, 1 + sum(other > means[arm.name] for other in means.values()))
        for arm in analysis.arms
    ]
    ordered = tuple(sorted(rows, key=lambda row: row.place))
    return RankingTable(ordered, any(row.effect is not None for row in rows), analysis.tested)


def _row(analysis: Analysis, arm: ArmNumbers, place: int) -> Row:
    is_reference = arm.name == analysis.reference
    words = ", ".join(
        filter(None, ["reference" if is_reference else "", WORDS[analysis.arm_types[arm.name]]])
    )
    role = "" if is_reference else "tested" if arm.test is not None else "exploratory"
    smallest = None if arm.test is None else arm.smallest
    return Row(
        place,
        arm.name,
        words,
        arm.endpoint.mean,
        arm.endpoint.difference,
        role,
        arm.effect,
        smallest,
        arm.test,
    )
