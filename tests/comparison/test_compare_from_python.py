"""A comparison from Python is the comparison of the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import medcl3d
from medcl3d.core.errors import ConfigError


def test_a_dict_gives_the_report_of_the_file(comparison: Callable[..., Path]) -> None:
    path = comparison(replicates=1, vary={"num_labelled": [2]})
    content = yaml.safe_load(path.read_text())
    by_file = medcl3d.compare(path, out_dir="by_file")
    by_dict = medcl3d.compare(content, out_dir="by_dict")
    assert by_file.path == Path("by_file/report.html") and by_file.path.is_file()
    assert {row["arm"] for row in by_file.rows} == {"scratch", "dense, all", "simclr"}
    assert [row["dice"] for row in by_dict.rows] == [row["dice"] for row in by_file.rows]
    assert by_dict.conclusion == by_file.conclusion
    assert yaml.safe_load(Path("by_dict/compare.yaml").read_text()) == {**content, "out_dir": "by_dict"}
    again = medcl3d.compare("by_dict/compare.yaml")
    assert again.rows == by_dict.rows


def test_overrides_are_values(comparison: Callable[..., Path]) -> None:
    path = comparison(replicates=1)
    overrides = {"vary.num_labelled": [2], "reference": "scratch"}
    report = medcl3d.compare(path, out_dir="runs", overrides=overrides)
    assert {row["num_labelled"] for row in report.rows} == {"2"}
    with pytest.raises(ConfigError, match=r"^overrides: replicates = 0"):
        medcl3d.compare(path, overrides={"replicates": 0})
