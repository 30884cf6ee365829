"""The plan: its runs, their order, and that compared runs differ only in what is compared."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from medcl3d.comparison.plan.cells import dotted, slug
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.runs import check_comparable, free_fields, plan
from medcl3d.config.loading import load
from medcl3d.config.plain import Difference
from medcl3d.core.errors import ConfigError
from tests.pages import DOCS, blocks


def expand(path: Path, *overrides: str):
    config = load(path, overrides, CompareConfig)
    return config, plan(config, str(path))


def test_compared_runs_differ_only_in_what_is_compared(comparison):
    """In the whole plan: same seed, same cell, and all fields equal except those of the arm."""
    _, runs = expand(comparison(), "replicates=3")
    groups = itertools.groupby(
        sorted(runs, key=lambda r: (r.command, r.cell, r.seed)), key=lambda r: (r.command, r.cell, r.seed)
    )
    for (command, cell, seed), members in groups:
        group = list(members)
        assert len(group) == (2 if command == "pretrain" else 3)
        for a, b in itertools.combinations(group, 2):
            free = (
                {"pairs", "objective", "out_dir"}
                if command == "pretrain"
                else {"init", "out_dir", "transfer", "gain"}
            )
            assert {key for key in a.planned if a.planned[key] != b.planned[key]} <= free
            assert a.planned["seed"] == b.planned["seed"] == seed
            assert all(a.planned[key] == value for key, value in cell)


def test_arms_start_from_the_pretraining_of_their_own_replicate(comparison):
    _, runs = expand(comparison())
    by_folder = {run.folder: run for run in runs}
    for run in runs:
        if run.command == "finetune" and run.name != "scratch":
            assert run.needs is not None
            needed = by_folder[run.needs]
            assert (needed.seed, needed.name) == (run.seed, run.name.split(",")[0])
            assert run.planned["init"] == str(run.needs)
        elif run.name == "scratch":
            assert run.planned["init"] == "scratch"


def test_replicates_are_completed_one_after_the_other(comparison):
    _, runs = expand(comparison(), "replicates=3")
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert Counter(run.seed for run in runs) == {0: 8, 1: 8, 2: 8}
    for run in runs:
        if run.needs is not None:
            order = [other.folder for other in runs]
            assert order.index(run.needs) < order.index(run.folder)
    assert len({run.folder for run in runs}) == len(runs)


def test_a_confirmation_has_its_own_seeds(comparison):
    _, runs = expand(comparison(), "replicates=2", "first_seed=10")
    assert {run.seed for run in runs} == {run.planned["seed"] for run in runs} == {10, 11}
    assert all(run.folder.name == f"seed_{run.seed}" for run in runs)


def test_every_combination_is_a_cell(comparison):
    _, runs = expand(comparison(vary={"num_labelled": [2, 8], "train.steps": [1, 10]}), "replicates=1")
    cells = {run.cell for run in runs if run.command == "finetune"}
    assert cells == {(("num_labelled", n), ("train.steps", s)) for n in (2, 8) for s in (1, 10)}
    assert all(
        run.planned["train"]["steps"] == dict(run.cell)["train.steps"]
        for run in runs
        if run.command == "finetune"
    )


def test_a_pretraining_that_differs_in_more_is_refused(comparison, tmp_path):
    path = comparison()
    file = tmp_path / "simclr.yaml"
    file.write_text(file.read_text().replace("steps: 5", "steps: 50"))
    with pytest.raises(ConfigError, match=r"differ in more than what is compared: train.steps: 5 -> 50"):
        expand(path)
    expand(path, "pretrain={train.steps: 7}")
    expand(path, "may_differ=[train.steps]")


def test_a_run_changed_by_hand_is_refused(comparison):
    config, runs = expand(comparison())
    last = runs[-1]
    changed = replace(last, planned={**last.planned, "train": {**last.planned["train"], "steps": 99}})
    with pytest.raises(ConfigError, match=r"train.steps: 3 -> 99"):
        check_comparable([*runs[:-1], changed], config)


def test_free_fields_are_whole_names():
    """A field `pairs_per_batch` would not pass as `pairs`."""
    assert not Difference(("pairs_per_batch",), 1, 2).within(["pairs"])
    assert Difference(("pairs", "a"), 1, 2).within(["pairs"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"reference": "nothing"}, "no arm is named 'nothing'"),
        ({"arms": {"scratch": {}, "a": {"pretraining": "b"}}}, "no pretraining is named 'b'"),
        ({"arms": {"scratch": {}, "a b": {}, "a, b": {}}}, "share one folder"),
        ({"arms": {"scratch": {}, "a": {"set": {"num_labelled": 3}}}}, "varies over all arms"),
        ({"arms": {"scratch": {}, "a": {"set": {"seed": 3}}}}, "sets this field itself"),
        ({"vary": {"num_labelled": [2, 2]}}, "different"),
        ({"vary": {"num_labelled": 2}}, "a list"),
        ({"endpoint": {"num_labelled": 3}}, "not among the varied values"),
        ({"endpoint": {"train.steps": 3}}, "does not vary; use one of num_labelled"),
        ({"vary": {"transfer": ["a b", "a_b"]}}, "would share one folder; use values"),
        ({"arms": {"scratch": {}, "a" * 81: {}}}, "has 81 characters.* use 80 at most"),
        ({"arms": {"scratch": {}, "a\nb": {}}}, "use names of one line"),
        ({"arms": {"scratch": {}, "a": {"set": {"transfr": "all"}}}}, "did you mean 'transfer'"),
        ({"replicates": 0}, "replicates"),
        ({"family": ["dense"]}, "'dense' is not an arm"),
        ({"family": ["scratch"]}, "other than the reference"),
    ],
)
def test_inconsistent_fields_end_with_one_line(comparison, fields, words):
    with pytest.raises(ConfigError, match=words) as error:
        expand(comparison(**fields))
    assert "\n" not in str(error.value)


def test_nested_and_dotted_overrides_are_equal(comparison):
    path = comparison(finetune={"config": "finetune.yaml", "set": {"train.steps": 40}})
    _, runs = expand(path, "finetune.set.train.steps=20", "pretrainings.dense.set.objective={simclr: {}}")
    assert {run.planned["train"]["steps"] for run in runs if run.command == "finetune"} == {20}
    assert runs[0].planned["objective"] == {"simclr": {}}


def test_dotted_keeps_a_choice_as_one_value():
    fields = {
        "train": {"steps": 9, "lr": 0.1},
        "pairs": {"overlapping_crops": {"min_iou": 0.2}},
        "views.mri.noise": 0,
    }
    assert dotted(fields) == {
        "train.steps": 9,
        "train.lr": 0.1,
        "pairs": {"overlapping_crops": {"min_iou": 0.2}},
        "views.mri.noise": 0,
    }


def test_names_become_folders():
    assert slug("dense, all / new") == "dense_all_new"
    assert slug("../..") == "_"


def test_sets_of_pretrainings_are_free_only_there(comparison):
    config, _ = expand(
        comparison(
            pretrainings={
                "dense": {"config": "dense.yaml", "set": {"encoder": "large"}},
                "simclr": {"config": "simclr.yaml"},
            }
        )
    )
    assert "encoder" in free_fields("pretrain", config)
    assert "encoder" not in free_fields("finetune", config)


def test_the_pages_name_existing_fields():
    found = [
        block for name in ("compare", "cluster") for block in blocks(DOCS / "howto" / f"{name}.md", "yaml")
    ]
    keys = {key for block in found for key in yaml.safe_load(block.code)}
    assert {"family", "executor", "screening"} <= keys <= {field.name for field in fields(CompareConfig)}


def test_measured_steps_are_kept_by_the_pretrainings():
    path = Path(__file__).parents[2] / "configs" / "compare" / "study" / "sensitivity_steps.yaml"
    _, runs = expand(path, "vary.step=[200, 600]", "replicates=1")
    measured = [run for run in runs if run.measures]
    assert {run.planned["step"] for run in measured} == {200, 600}
    assert all("@" not in run.planned["init"] for run in measured)
    with pytest.raises(ConfigError, match=r"step.*300.*keep_steps: \[300\]"):
        expand(path, "vary.step=[300]", "replicates=1")
