"""Classes with few labelled training patients are reported with their number, in runs and comparisons."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medcl3d.comparison.analysis.results import few_training_cases as of_comparison
from medcl3d.downstream.few_cases import few_case_notes, few_cases_over_runs, few_training_cases
from medcl3d.downstream.finetune import finetune
from medcl3d.downstream.tasks.classification import Classification
from medcl3d.downstream.tasks.multilabel import Multilabel
from medcl3d.downstream.tasks.regression import Regression
from medcl3d.downstream.tasks.segmentation import Segmentation
from medcl3d.downstream.tasks.structure_at_centre import StructureAtCentre
from medcl3d.store.store import Store
from tests.downstream.test_finetune import config_of, write


@pytest.mark.parametrize("task", [Segmentation(), StructureAtCentre()])
def test_a_class_of_few_patients_is_counted(
    ball_store: Store, task: Segmentation | StructureAtCentre
) -> None:
    """Scan 0 has no cube; every scan has a ball."""
    assert few_training_cases(task, ball_store, [0, 1, 2]) == {"cube": 2}
    assert few_training_cases(task, ball_store, [0, 1]) == {"cube": 1}
    assert few_training_cases(task, ball_store, [0]) == {"ball": 1, "cube": 0}
    assert few_training_cases(task, ball_store, [1, 2, 3, 4]) == {}, "every labelled patient has both"
    assert few_training_cases(task, ball_store, [1]) == {"ball": 1, "cube": 1}, (
        "a single patient is always reported"
    )
    assert few_training_cases(Segmentation(classes=(1,)), ball_store, [0, 1]) == {}


def with_columns(store: Store, **columns: list[str]) -> Store:
    other = Store.open(store.root)
    for name, values in columns.items():
        other.collection.table[name] = values
    return other


def test_patients_are_counted_not_scans(ball_store: Store) -> None:
    kinds = ["a", "a", "b", "a", "a", "a", "a", "b"]
    store = with_columns(ball_store, kind=kinds, tumour=["1", "0", "0", "1", "", "0", "1", "0"])
    assert few_training_cases(Classification(target="kind"), store, [0, 1, 2, 3, 4, 5]) == {"b": 1}
    assert few_training_cases(Multilabel(targets=("tumour",)), store, [0, 1, 2, 4]) == {"tumour": 1}
    assert few_training_cases(Regression(target="age"), store, [0, 1]) == {}
    store.collection.table["patient"] = ["p"] * 3 + ["q"] * 5
    assert few_training_cases(Segmentation(), store, [0, 1, 2]) == {"ball": 1, "cube": 1}


def test_sentences() -> None:
    assert few_case_notes({"cube": 1, "tail": 0, "head": 3}, 8) == [
        "class cube: 1 of 8 labelled training patients has it; its results depend on 1",
        "class tail: none of 8 labelled training patients has it, so it was not trained",
        "class head: 3 of 8 labelled training patients have it; its results depend on 3",
    ]
    runs = [{"few_training_cases": {"cube": 1}}, {}, {"few_training_cases": {"cube": 3}}]
    assert few_cases_over_runs(runs) == [
        "Class cube: few labelled training patients have it (1 to 3, in 2 of 3 measurements); its results "
        "depend on them."
    ]
    assert few_cases_over_runs([{}]) == [] and of_comparison([]) == []


def test_a_run_prints_and_writes_them(
    ball_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(write(tmp_path / "c.yaml", config_of(ball_root, tmp_path / "run", num_labelled=1)))
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["few_training_cases"] == {"ball": 1, "cube": 1}
    assert "note: class cube: 1 of 1 labelled training patients has it; its results depend on 1" in printed
