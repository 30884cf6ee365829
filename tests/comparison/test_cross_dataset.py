"""Ranking of arms across data sets, if there are enough."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from medcl3d.comparison.analysis.analyse import analyse
from medcl3d.comparison.analysis.cross_dataset import endpoints, rank_across
from medcl3d.comparison.plan.config import Anchors, Arm, CompareConfig, Recipe
from medcl3d.comparison.report.figures import rank_line
from medcl3d.config.plain import plain
from medcl3d.core.errors import ConfigError

GAINS = {"scratch": 0.0, "a": 0.1, "b": 0.2}


def config_of(name: str, **fields) -> CompareConfig:
    return CompareConfig(
        out_dir=Path("runs") / name, finetune=Recipe(Path("f.yaml")), arms={arm: Arm() for arm in GAINS},
        reference="scratch",
        vary={"num_labelled": [2, 8]}, endpoint={"num_labelled": 8}, replicates=2, controls=(), **fields,
    )  # fmt: skip


def table_of(level: float, seeds=(0, 1)) -> pd.DataFrame:
    grid = itertools.product(GAINS, (2, 8), seeds)
    rows = [
        {
            "arm": arm,
            "num_labelled": labels,
            "seed": seed,
            "dice": level + GAINS[arm] + labels / 100 + seed / 50,
        }
        for arm, labels, seed in grid
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.chdir(tmp_path)
    files = []
    for number in range(4):
        config = config_of(f"set{number}")
        file = tmp_path / f"set{number}.yaml"
        file.write_text(
            yaml.safe_dump({key: value for key, value in plain(config).items() if value is not None})
        )
        config.out_dir.mkdir(parents=True)
        table_of(0.1 * number, (0, 1, 2) if number else (0, 1)).iloc[: None if not number else -1].to_csv(
            config.out_dir / "results.csv", index=False
        )
        files.append(file)
    return files


def test_a_data_set_counts_by_its_complete_replicates_at_its_endpoint(others: list[Path]) -> None:
    assert endpoints(config_of("set1")) == pytest.approx(
        {arm: 0.1 + gain + 0.08 + 0.01 for arm, gain in GAINS.items()}
    )
    assert endpoints(config_of("none")) is None


@pytest.mark.parametrize("values", [["2", "8"], [2, "all"], ["null", 8.5]])
def test_text_of_a_table_is_read_as_it_was_written(
    values: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = replace(config_of("set"), vary={"num_labelled": values}, endpoint={})
    config = replace(config, arms={"1": Arm(), "None": Arm()}, reference="1")
    table = table_of(0.1)
    table = table[table["arm"] != "b"].replace({"arm": {"scratch": "1", "a": "None"}})
    table["num_labelled"] = [dict(zip((2, 8), values, strict=True))[one] for one in table["num_labelled"]]
    config.report_dir.mkdir(parents=True)
    table.to_csv(config.report_dir / "results.csv", index=False)
    found = analyse(table, config)
    assert found is not None
    expected = {name: sum(values) / len(values) for name, values in found.values.items()}
    assert endpoints(config) == pytest.approx(expected)
    (config.report_dir / "results.csv").write_text("\n")
    assert endpoints(config) is None, "a comparison without a finished run"


def test_five_sets_are_ranked_and_four_are_not(others: list[Path]) -> None:
    config = config_of("here", cross_dataset_ranking=tuple(others))
    analysis = analyse(table_of(0.5), config)
    assert analysis is not None
    found = rank_across(analysis, config)
    assert found is not None and found.ranks is not None and found.arms == ("scratch", "a", "b")
    assert found.ranks.mean == (3, 2, 1) and found.ranks.num_sets == 5 and found.note == ""
    picture = rank_line(found.arms, found.ranks)
    assert "b 1.00, a 2.00, scratch 3.00" in picture.alt and "critical difference" in picture.light
    (Path("runs") / "set3" / "results.csv").unlink()
    fewer = rank_across(analysis, config)
    assert (
        fewer is not None
        and fewer.ranks is None
        and "set3.yaml: no complete replicate yet" in fewer.note
        and "4 data sets" in fewer.note
    )
    assert rank_across(analysis, replace(config, cross_dataset_ranking=())) is None


def test_one_data_set_under_several_names_counts_once(others: list[Path]) -> None:
    config = config_of("here", cross_dataset_ranking=tuple(others))
    analysis = analyse(table_of(0.5), config)
    assert analysis is not None
    for number, data in enumerate(("one", "two", "three", "one")):
        folder = Path("runs") / f"set{number}" / "finetune" / "scratch"
        folder.mkdir(parents=True)
        (folder / "provenance.json").write_text(f'{{"data": "{data}"}}')
    with pytest.raises(
        ConfigError, match=r"set3\.yaml uses the same data as runs/set0; each data set counts once"
    ):
        rank_across(analysis, config)
    (folder / "provenance.json").write_text('{"data": "four"}')
    assert rank_across(analysis, config).ranks.num_sets == 5


def test_a_screening_is_not_ranked(others: list[Path]) -> None:
    config = config_of("here", cross_dataset_ranking=(others[1],))
    others[1].write_text(others[1].read_text().replace("stage: confirm", "stage: screen"))
    analysis = analyse(table_of(0.5), config)
    assert analysis is not None
    with pytest.raises(ConfigError, match="is a screening"):
        rank_across(analysis, config)


def test_incompatible_comparisons_are_not_ranked(others: list[Path]) -> None:
    config = config_of("here", cross_dataset_ranking=(others[0], others[0]))
    analysis = analyse(table_of(0.5), config)
    assert analysis is not None
    with pytest.raises(ConfigError, match="counts once"):
        rank_across(analysis, config)
    with pytest.raises(ConfigError, match="opposite directions of better"):
        rank_across(analysis, replace(config, cross_dataset_ranking=(others[0],), metric="hd95_mm"))


def test_data_sets_are_scaled_between_their_anchors(others: list[Path]) -> None:
    """Scratch with 2 labels is 0 and b with 8 is 1: a, 0.1 above scratch, is halfway to b."""
    scale = Anchors(low="scratch", high="b")
    for file in others[1:]:
        content = yaml.safe_load(file.read_text())
        file.write_text(yaml.safe_dump({**content, "anchors": plain(scale)}))
    config = config_of("here", cross_dataset_ranking=tuple(others), anchors=scale)
    analysis = analyse(table_of(0.5), config)
    assert analysis is not None
    found = rank_across(analysis, config)
    assert found is not None
    assert set(found.scaled) == {"runs/here", "runs/set1", "runs/set2", "runs/set3"}
    assert found.scaled["runs/set2"] == pytest.approx({"scratch": 0, "a": 0.5, "b": 1})
    assert found.mean_scaled == pytest.approx({"scratch": 0, "a": 0.5, "b": 1})
    assert found.unscaled == ("runs/set0 has no common scale: its file declares no `anchors`.",)


def test_an_anchor_may_have_other_cells_and_may_be_missing(others: list[Path]) -> None:
    """Scratch with 8 labels is 1 and with 2 it is 0: a difference of 0.06."""
    content = yaml.safe_load(others[0].read_text())
    others[0].write_text(yaml.safe_dump({**content, "anchors": {"low": "scratch", "high": "gone"}}))
    others[1].write_text(
        yaml.safe_dump({**content, "out_dir": "runs/set1", "anchors": {"low": "b", "high": "a"}})
    )
    to_eight = Anchors(low="scratch", high="scratch", high_endpoint={"num_labelled": 8})
    config = replace(
        config_of("here", cross_dataset_ranking=tuple(others[:2]), anchors=to_eight),
        endpoint={"num_labelled": 2},
    )
    analysis = analyse(table_of(0.5), config)
    assert analysis is not None
    found = rank_across(analysis, config)
    assert found is not None and found.ranks is None
    assert found.scaled == {"runs/here": pytest.approx({"scratch": 0, "a": 0.1 / 0.06, "b": 0.2 / 0.06})}
    assert found.unscaled == (
        "runs/set0 has no common scale: the arm 'gone' of `anchors` does not exist.",
        "runs/set1 has no common scale: the high anchor 'a' is not better than the low one 'b'.",
    )
