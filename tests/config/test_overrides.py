"""Command-line text: text and path fields use it unchanged, and no other field drops part of it silently."""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from medcl3d.comparison.plan.runs import as_overrides, plan
from medcl3d.config.kinds import CONFIGS
from medcl3d.config.loading import load, parse, read_options
from medcl3d.config.plain import plain
from medcl3d.core.errors import ConfigError
from medcl3d.preprocessing.options import option_schemas, prepare_options
from medcl3d.quality.source_detection import option_schemas_at

ROOT = Path(__file__).parents[2]
FILES = {
    "pretrain": "pretrain/simulated_overlap",
    "finetune": "finetune/mine",
    "evaluate": "evaluate/mine",
    "compare": "compare/mine",
}
RAW = (
    "cohort #2",
    "2024",
    "1e5",
    "null",
    "true",
    "a: b",
    "[a",
    "{b",
    "*c",
    "&d",
    "!e",
    "%f",
    "- g",
    "#h",
    " i ",
    "0x10",
    "'j",
    'k"',
)


def read(kind: str, *overrides: str) -> dict[str, Any]:
    config: dict[str, Any] = plain(
        load(ROOT / f"configs/{FILES[kind]}.yaml", overrides, resolve_name(CONFIGS[kind]))
    )
    return config


@pytest.mark.parametrize("text", RAW)
def test_a_text_or_path_field_uses_text_unchanged(text: str) -> None:
    config = read(
        "pretrain",
        f"out_dir={text}",
        f"data.root={text}",
        "pairs=class_labels",
        f"pairs.class_labels.column={text}",
    )
    assert config["data"]["root"] == config["out_dir"] == str(Path(text))
    assert config["pairs"] == {"class_labels": config["pairs"]["class_labels"] | {"column": text}}


@pytest.mark.parametrize(
    ("kind", "field", "text", "value"),
    [
        ("finetune", "init", "runs/a #2", "runs/a #2"),
        ("finetune", "task.regression.target", "2024", "2024"),
        ("evaluate", "retrieval.same", "1e5", "1e5"),
        ("evaluate", "retrieval.differ", "null", None),
        ("evaluate", "retrieval.differ", "~", None),
        ("evaluate", "retrieval.differ", "nulls", "nulls"),
        ("evaluate", "retrieval.differ", "'null'", "null"),
        ("pretrain", "out_dir", '"a #2"', "a #2"),
        ("pretrain", "out_dir", "'it''s'", "it's"),
        ("pretrain", "train.steps", "7", 7),
        ("pretrain", "data.modalities", "[T1, 'T2 #3']", ["T1", "T2 #3"]),
        ("pretrain", "pairs.hard_negatives.inner.class_labels.column", "site #2", "site #2"),
        ("compare", "screening", "null", None),
        ("compare", "screening", "2024", "2024"),
        ("compare", "pretrain.data.root", "cohort #2", "cohort #2"),
        ("compare", "pretrain.data.root", "1e5", "1e5"),
        ("compare", "pretrain.train.steps", "7", 7),
        ("compare", "finetune.set.data.root", "2024", "2024"),
        ("compare", "arms.a.set.data.root", "2024", "2024"),
        ("compare", "pretrainings.b.set.pairs.class_labels.column", "[a", "[a"),
        ("compare", "vary.num_labelled", "[2, 4]", [2, 4]),
        ("compare", "prepare.root", "a #2", "a #2"),
        ("compare", "prepare.options.pattern", "{patient} #2.nii", "{patient} #2.nii"),
        ("compare", "prepare.options.label", "[a, b]", ["a", "b"]),
    ],
)
def test_the_type_of_a_field_determines_how_text_is_read(
    kind: str, field: str, text: str, value: Any
) -> None:
    more = {
        "arms": ["arms.a.pretraining=b"],
        "pretrainings": ["pretrainings.b.config=c"],
        "prepare": ["prepare.source=folder", "prepare.out=o"],
        "task": ["task=regression"],
        "pairs": ["pairs=hard_negatives"],
    }
    found: Any = read(kind, *more.get(field.split(".")[0], []), f"{field}={text}")
    for key in field.split("."):
        found = found[key]
    assert found == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train.steps=7 #8",
            "train.steps = '7 #8': input should be a valid integer; remove '#8', which is part of the "
            "value here",
        ),
        ("train.steps=#8", "train.steps = '#8': input should be a valid integer"),
        ("seed=1 # one", "seed = '1 # one': input should be a valid integer; remove '# one'"),
        ("data.modalities=[T1] #2", "data.modalities = '[T1] #2': expected: list of words or null"),
        (
            "objective=simclr #2",
            "objective.simclr #2 = {}: no objective has this name; did you mean 'simclr'?",
        ),
        (
            "objective.simclr.norm=layer #2",
            "objective.simclr.norm = 'layer #2': input should be 'layer', 'group', 'batch' or 'none'",
        ),
        ("dta.root=cohort #2", "dta = {'root': 'cohort #2'}: unknown key; did you mean 'data'?"),
        ("out_dir=", "out_dir: input should be a valid string"),
        ("out_dir=~", "out_dir: input should be a valid string"),
    ],
)
def test_no_part_of_a_value_is_dropped_silently(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read("pretrain", text)
    assert str(error.value).startswith(f"command line: {message}")


def test_options_of_prepare_and_check_are_read_by_their_types(tmp_path: Path) -> None:
    texts = ["pattern={patient} #2/*.nii", "label=2024", "workers=2"]
    given = prepare_options("folder", read_options(texts, option_schemas("folder")))
    assert (
        given.fields["pattern"] == "{patient} #2/*.nii"
        and given.fields["label"] == "2024"
        and given.options.workers == 2
    )
    texts = ["source=folder", "pattern=a #2", "label=null", "workers=2"]
    read = read_options(texts, option_schemas_at(tmp_path, texts))
    assert read == {"source": "folder", "pattern": "a #2", "label": None, "workers": 2}
    assert read_options(["label=[a, b]"], option_schemas("bids")) == {"label": ["a", "b"]}
    with pytest.raises(ConfigError, match="workers = '2 #3': "):
        prepare_options("folder", read_options(["pattern=a", "workers=2 #3"], option_schemas("folder")))


def test_overrides_of_a_comparison_keep_their_values(tmp_path: Path) -> None:
    values = {
        "out_dir": 'a "b" #2',
        "data.root": "2024",
        "train.steps": 3,
        "pairs": {"class_labels": {"column": "null"}},
    }
    config = read("pretrain", *as_overrides(values))
    assert (config["out_dir"], config["data"]["root"], config["train"]["steps"]) == ('a "b" #2', "2024", 3)
    assert config["pairs"]["class_labels"]["column"] == "null"


def test_a_number_as_a_path_in_the_file_of_a_comparison_is_refused() -> None:
    simulated = read("compare", "pretrain.data.root=here")
    simulated["pretrain"]["data"]["root"] = 1e5
    with pytest.raises(ConfigError, match=r"data.root = 100000.0: input should be a valid string"):
        plan(parse(simulated, resolve_name(CONFIGS["compare"]), "c.yaml"))
