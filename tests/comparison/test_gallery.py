"""Pictures of a report: identical ones are shown once, and arms without pairs have none."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from medcl3d.comparison.analysis.analyse import analyse
from medcl3d.comparison.analysis.analysis import Analysis
from medcl3d.comparison.plan.arm_types import ArmType
from medcl3d.comparison.plan.config import Arm, CompareConfig, Recipe
from medcl3d.comparison.plan.runs import Run
from medcl3d.comparison.report.gallery import cases, pairing
from medcl3d.comparison.report.ranking_table import ranking_table

KINDS: dict[str, ArmType] = {"ours": "pairs", "other": "pairs", "placebo": "placebo", "mae": "mae"}
CONFIG = CompareConfig(
    out_dir=Path("runs"), finetune=Recipe(config=Path("f.yaml")),
    arms={f"arm {name}": Arm(name) for name in KINDS}, reference="arm ours"
)  # fmt: skip


@pytest.fixture
def analysis() -> Analysis:
    rows = [{"arm": arm, "seed": 0, "dice": 0.5} for arm in CONFIG.arms]
    found = analyse(
        pd.DataFrame(rows), CONFIG, arm_types={f"arm {name}": kind for name, kind in KINDS.items()}
    )
    assert found is not None
    return found


def run_of(folder: Path, command: str, name: str, **pictures: bytes) -> Run:
    run = Run(command, name, (), 0, Path("x.yaml"), (), folder / command / name, None, {})  # type: ignore[arg-type]
    (run.folder / "pictures").mkdir(parents=True)
    for picture, content in pictures.items():
        (run.folder / "pictures" / f"{picture}.png").write_bytes(content)
    return run


def test_identical_pictures_are_shown_once_and_arms_without_pairs_have_none(
    tmp_path: Path, analysis: Analysis
) -> None:
    drawn = {"ours": b"same", "other": b"own", "placebo": b"same", "mae": b"same"}
    runs = [run_of(tmp_path, "pretrain", name, pairs=drawn[name], relation=name.encode()) for name in KINDS]
    found = pairing(analysis, runs, CONFIG)
    assert [one.caption for one in found.drawn] == [
        "“ours”, “placebo” (placebo) (identical pictures)",
        "“other”",
    ]
    assert [one.caption for one in found.related] == ["“ours”", "“other”", "“placebo” (placebo)"]
    assert all("mae" not in one.alt for one in (*found.drawn, *found.related))
    assert [note.split(":")[0] for note in found.notes] == ["“placebo”", "“mae”"]
    assert "permuted among the scans" in found.notes[0] and "no pairs and no picture" in found.notes[1]


def test_pictures_of_cases_name_their_arm(tmp_path: Path, analysis: Analysis) -> None:
    runs = [run_of(tmp_path, "finetune", "arm ours", cases=b"x"), run_of(tmp_path, "finetune", "arm other")]
    (one,), same = cases(analysis, runs, "validation")
    assert not same
    assert (
        one.alt == "Best and worst validation cases with true and predicted outlines: arm ours"
        and one.caption == "arm ours"
    )


def test_columns_of_the_same_cases_are_ordered_like_the_table(tmp_path: Path, analysis: Analysis) -> None:
    runs = [
        run_of(tmp_path, "finetune", f"arm {name}", same_cases=b"x", cases=b"y") for name in ("ours", "other")
    ]
    found, same = cases(analysis, runs, "test")
    order = [row.arm.name for row in ranking_table(analysis).rows]
    assert same and [one.caption for one in found] == [
        name for name in order if name in ("arm ours", "arm other")
    ]
    assert found[0].uri.endswith("eA==") and found[0].alt.startswith("The same test cases with true")
