"""Tables for terminals and pages have the numbers of the analysis."""

from __future__ import annotations

from medcl3d.comparison.analysis.analyse import analyse
from medcl3d.comparison.analysis.number_text import with_interval
from medcl3d.comparison.plan.config import Arm
from medcl3d.comparison.report.markdown import markdown
from tests.comparison.test_analysis import config_of, table_of


def test_every_arm_has_a_mean_and_all_but_the_reference_a_difference() -> None:
    config = config_of()
    analysis = analyse(table_of(config, 5, {"a": 0.03}), config)
    assert analysis is not None
    lines = markdown(analysis).splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    arms = ["arm", "---", "scratch", "a", "b", "arm", "---", "a", "b", "arm", "---", "scratch", "a", "b"]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == arms
    cell = analysis.cells[1]
    assert with_interval(analysis.arm("a").cells[cell].mean) in rows[3]
    assert analysis.arm("a").cells[cell].difference is not None
    assert with_interval(analysis.arm("a").cells[cell].difference, sign=True) in rows[7]  # type: ignore[arg-type]
    assert "num_labelled 8" in rows[0] and "5 replicates" in markdown(analysis)


def test_pipes_in_names_are_escaped() -> None:
    arms = {"scratch": Arm(), "a|b": Arm(pretraining="a")}
    config = config_of(arms=arms)
    analysis = analyse(table_of(config, 3, {}), config)
    assert analysis is not None
    assert "| a\\|b | " in markdown(analysis)
