"""The ranking table: ranks, marks of controls, and columns that are not empty."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medcl3d.comparison.analysis.analyse import analyse
from medcl3d.comparison.analysis.analysis import Analysis
from medcl3d.comparison.plan.arm_types import ArmType
from medcl3d.comparison.plan.config import Arm, CompareConfig, Recipe
from medcl3d.comparison.report.ranking_table import RankingTable, ranking_table

KINDS: dict[str, ArmType] = {"scratch": "scratch", "ours": "pairs", "ours (placebo)": "placebo", "mae": "mae"}
MEANS = {"scratch": 0.5, "ours": 0.8, "ours (placebo)": 0.6, "mae": 0.6}


def table(
    replicates: int, stage: str = "confirm", metric: str = "dice", family: tuple[str, ...] = ("ours",)
) -> RankingTable:
    arms = {name: Arm(pretraining=None if kind == "scratch" else name) for name, kind in KINDS.items()}
    config = CompareConfig(
        out_dir=Path("runs"), finetune=Recipe(config=Path("f.yaml")), arms=arms, reference="scratch",
        metric=metric,
        stage=stage, family=family, replicates=replicates,  # type: ignore[arg-type]
    )  # fmt: skip
    rows = [
        {"arm": arm, "seed": seed, metric: mean + 0.01 * (seed % 2) + 0.001 * ((seed * len(arm)) % 3)}
        for seed in range(replicates)
        for arm, mean in MEANS.items()
    ]
    analysis = analyse(pd.DataFrame(rows), config, arm_types=KINDS)
    assert isinstance(analysis, Analysis)
    return ranking_table(analysis)


def test_the_best_is_first_and_ranks_follow_the_direction() -> None:
    assert [(row.place, row.arm.name) for row in table(1).rows] == [
        (1, "ours"),
        (2, "ours (placebo)"),
        (2, "mae"),
        (4, "scratch"),
    ]
    assert table(1, metric="hd95_mm").rows[0].arm.name == "scratch"


def test_controls_are_marked() -> None:
    words = {row.arm.name: row.words for row in table(2).rows}
    assert words == {
        "ours": "", "ours (placebo)": "control: placebo", "mae": "control: no pairs",
        "scratch": "reference, control: not pretrained",
    }  # fmt: skip


def test_empty_columns_are_left_out() -> None:
    two, screening, tested = table(2), table(8, stage="screen"), table(8)
    assert (two.effects, two.tested) == (False, False), "two replicates have no standardised difference"
    assert (screening.effects, screening.tested) == (True, False), (
        "a screening tests nothing, so it has no detectable difference"
    )
    assert (tested.effects, tested.tested) == (True, True)
    assert {row.arm.name: row.role for row in tested.rows} == {
        "ours": "tested", "ours (placebo)": "exploratory", "mae": "exploratory", "scratch": "",
    }  # fmt: skip
    assert [row.arm.name for row in tested.rows if row.arm.test is not None] == ["ours"]
