"""A confirmation has new seeds and new test patients."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from medcl3d.comparison.compare import compare
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.run.stages import check_confirmation
from medcl3d.config.loading import load
from medcl3d.config.packaged import find_config
from medcl3d.core.errors import ConfigError, DataError

SMALL = {
    "arms": {"scratch": {}, "gain": {"set": {"gain": 0.1}}},
    "vary": {"num_labelled": [2]},
    "replicates": 1,
}


@pytest.fixture
def screened(comparison) -> Path:
    """A finished screening in screen.yaml, with one test patient that other comparisons lack."""
    path = comparison(**SMALL, out_dir="screening", stage="screen")
    compare(path.rename("screen.yaml"))
    for file in Path("screening").rglob("results.json"):
        content = json.loads(file.read_text())
        content["split"]["test"] = ["screening_only"]
        file.write_text(json.dumps(content))
    return Path("screen.yaml")


def test_new_seeds_and_new_patients_are_confirmed(comparison, screened):
    report = compare(comparison(**SMALL, screening=str(screened), first_seed=1))
    assert "Seeds 1:" in report.read_text()
    assert "selects candidates" in Path("screening/report.html").read_text()


def test_a_seed_of_the_screening_is_refused(comparison, screened):
    with pytest.raises(ConfigError, match="used seed 0; set first_seed to 1 or more"):
        compare(comparison(**SMALL, screening=str(screened)))
    assert not Path("runs").exists()


def test_a_patient_of_the_screening_is_refused(comparison, screened):
    for file in Path("screening").rglob("results.json"):
        file.write_text(file.read_text().replace("screening_only", "p3"))
    with pytest.raises(DataError, match=r"1 test patients were used in the screening \(p3\)"):
        compare(comparison(**SMALL, screening=str(screened), first_seed=1))
    assert not Path("runs/report.html").exists()


@pytest.mark.parametrize(
    ("stage", "words"), [("confirm", "is not a screening"), ("screen", "a screening does not confirm")]
)
def test_a_file_that_is_not_a_screening_is_refused(comparison, stage, words):
    first = comparison(**SMALL, out_dir="screening").rename("screen.yaml")
    with pytest.raises(ConfigError, match=words):
        compare(comparison(**SMALL, screening=str(first), first_seed=1, stage=stage), check=True)


def test_a_packaged_screening_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    packaged = load(find_config("compare/hippocampus"), (), CompareConfig)
    check_confirmation([], packaged, "compare/hippocampus")
    with pytest.raises(ConfigError, match="used seed"):
        check_confirmation([], replace(packaged, first_seed=0), "compare/hippocampus")
