"""The ranking table of a comparison: arms at the primary endpoint, best first, with controls marked."""

from __future__ import annotations

from dataclasses import dataclass

from medcl3d.comparison.analysis.analysis import Analysis, ArmNumbers
from medcl3d.comparison.plan.arm_types import ArmType

WORDS: dict[ArmType, str] = {
    "pairs": "",
    "scratch": "control: not pretrained",
    "foreign": "weights of another project",
    "augmented": "control: no choice of pairs",
    "placebo": "control: placebo",
    "mae": "control: no pairs",
}


@dataclass(frozen=True)
class Row:
    """One arm. place: 1 for the best mean, shared by equal ones; words: reference, type of control or ""."""

    place: int
    arm: ArmNumbers
    words: str
    role: str


@dataclass(frozen=True)
class RankingTable:
    """Rows, best first, and which columns are not empty.

    effects   some arm has a standardised difference (needs three replicates)
    tested    some arm is tested: then the table has roles, p-values and the smallest detectable difference
    """

    rows: tuple[Row, ...]
    effects: bool
    tested: bool


def ranking_table(analysis: Analysis) -> RankingTable:
    """All arms ordered by their mean at the endpoint."""
    means = {arm.name: arm.endpoint.mean.mean * (1 if analysis.higher else -1) for arm in analysis.arms}
    rows = []
    for arm in analysis.arms:
        control, role = WORDS[analysis.arm_types[arm.name]], "exploratory" if arm.test is None else "tested"
        if arm.name == analysis.reference:
            control, role = ", ".join(filter(None, ["reference", control])), ""
        place = 1 + sum(other > means[arm.name] for other in means.values())
        rows.append(Row(place, arm, control, role))
    ordered = tuple(sorted(rows, key=lambda row: row.place))
    return RankingTable(ordered, any(arm.effect is not None for arm in analysis.arms), analysis.tested)
