"""Former names of fields are accepted for one release, with one FutureWarning each."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import TypeAdapter
from typer.testing import CliRunner

from medcl3d.cli import app
from medcl3d.comparison.plan.cells import cells
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.runs import plan
from medcl3d.comparison.run.finished_runs import is_done
from medcl3d.config.choices import choice_in_list
from medcl3d.config.kinds import KINDS
from medcl3d.config.loading import load, parse, read_options
from medcl3d.config.overrides import schemas_at
from medcl3d.config.plain import plain
from medcl3d.config.registry import Registry
from medcl3d.core.errors import ConfigError
from medcl3d.datasets.sources import SOURCES
from medcl3d.downstream.pretrained_encoder import load_encoder
from medcl3d.downstream.tasks import TASKS
from medcl3d.encoders import ENCODERS
from medcl3d.objectives import OBJECTIVES
from medcl3d.pairs import PAIRS
from medcl3d.pairs.class_labels import ClassLabels
from medcl3d.preprocessing.options import option_schemas, prepare_options
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.pretrain import pretrain
from medcl3d.training.run_folder import read_status

UNET = {"unet3d": {"channels": [4, 8], "strides": [1, 2]}}
FIELDS = [
    ("objective", "mae", "share_hidden", "mask_ratio", 0.4),
    ("objective", "mae", "per_block", "normalise_target", True),
    ("objective", "mae_contrastive", "share_hidden", "mask_ratio", 0.4),
    ("objective", "mae_contrastive", "per_block", "normalise_target", True),
    ("objective", "dino", "warmup_share", "warmup_fraction", 0.4),
    ("objective", "swav", "sharpness", "epsilon", 0.1),
    ("pairs", "class_labels", "together", "group_size", 3),
    ("pairs", "metadata_kernel", "together", "group_size", 3),
]
REQUIRED = {"metadata_kernel": {"columns": {"age": 5.0}}}
MAE = {"objective": {"mae": {"share_hidden": 0.4}}}


def config_of(**replaced: Any) -> dict[str, Any]:
    return {
        "data": {"root": "store", "patch_size": [8, 8, 8]},
        "pairs": {"overlapping_crops": {}},
        "views": {"none": {}},
        "encoder": UNET,
        "objective": {"simclr": {}},
        "train": {"steps": 2, "samples_per_step": 2, "precision": "float32"},
        "out_dir": "run",
        **replaced,
    }


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def line_of(file: Path, key: str) -> int:
    return next(i for i, text in enumerate(file.read_text().splitlines(), 1) if f" {key}:" in text)


def one_warning(found: list[warnings.WarningMessage]) -> str:
    assert [one.category for one in found] == [FutureWarning]
    return str(found[0].message)


@pytest.fixture
def renamed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Declare the former name of a field of a registered component, for one test."""

    def declare(registry: Registry, name: str, **former: str) -> None:
        registry.get(name)
        monkeypatch.setitem(registry._renamed, name, former)
        for cache in ("_schemas", "_json_schemas"):
            monkeypatch.setattr(registry, cache, {})

    return declare


@pytest.fixture
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_every_renamed_field_is_listed_here() -> None:
    registries = {"objective": OBJECTIVES, "pairs": PAIRS}
    found = {(kind, name) for kind, registry in registries.items() for name in registry.names()}
    declared = [
        (kind, name, *names) for kind, name in found for names in registries[kind].renamed(name).items()
    ]
    assert sorted(declared) == sorted(row[:4] for row in FIELDS)
    others = [schemas_at(place) for kind, place in KINDS.items() if kind not in ("objectives", "pairs")]
    assert not any("x-renamed" in schema for schemas in others for schema in schemas)


@pytest.mark.parametrize(("key", "component", "former", "present", "value"), FIELDS)
def test_a_former_name_in_a_file_gives_the_same_configuration(
    tmp_path: Path, key: str, component: str, former: str, present: str, value: object
) -> None:
    fields = REQUIRED.get(component, {})
    old, new = (
        write(tmp_path / f"{field}.yaml", config_of(**{key: {component: {**fields, field: value}}}))
        for field in (former, present)
    )
    line = line_of(old, former)
    with pytest.warns(FutureWarning) as found:
        made = load(old, [], PretrainConfig)
    assert one_warning(list(found)) == (
        f"{old}:{line}: {key}.{component}.{former}: this field is now called {present}; rename it, since the "
        "next release does not read the former name"
    )
    assert made == load(new, [], PretrainConfig)
    assert plain(made)[key][component][present] == value


@pytest.mark.parametrize(("key", "component", "former", "present", "value"), FIELDS)
def test_a_former_name_on_the_command_line_or_in_a_dict_is_accepted(
    key: str, component: str, former: str, present: str, value: object
) -> None:
    base = config_of(**{key: {component: REQUIRED.get(component, {})}})
    path = f"{key}.{component}.{former}"
    expected = load(base, {f"{key}.{component}.{present}": value}, PretrainConfig)
    for overrides in ([f"{path}={json.dumps(value)}"], {path: value}):
        with pytest.warns(FutureWarning, match=f"^command line: {path}: .* called {present}") as found:
            assert load(base, overrides, PretrainConfig) == expected
        assert len(found) == 1
    given = config_of(**{key: {component: {**REQUIRED.get(component, {}), former: value}}})
    with pytest.warns(FutureWarning, match=f"^configuration: {path}: ") as found:
        assert load(given, [], PretrainConfig) == expected
    assert len(found) == 1


CONSTRUCTORS = """
import warnings
from medcl3d.config.field_types import Choice
from medcl3d.core.errors import ConfigError
from medcl3d.encoders.network import build_network
from medcl3d.objectives.swav import SwAV
from medcl3d.pairs.class_labels import ClassLabels
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    assert ClassLabels(together=3) == ClassLabels(group_size=3)
    network = build_network(Choice("unet3d", {"channels": [2, 4], "strides": [1, 2]}), 1, decoder=False)
    assert SwAV(network, sharpness=0.2).epsilon == 0.2
print(*(f"{one.category.__name__} {one.message}" for one in found), sep="\\n")
try:
    ClassLabels(together=3, group_size=3)
except ConfigError as error:
    print(error)
"""


def test_a_constructor_accepts_a_former_name() -> None:
    """In a process of its own, since the check of shapes refuses what is not in a constructor's signature."""
    done = subprocess.run([sys.executable, "-c", CONSTRUCTORS], capture_output=True, text=True, check=True)
    first, second, both = done.stdout.splitlines()
    assert first.startswith("FutureWarning class_labels: together: ") and " called group_size;" in first
    assert second.startswith("FutureWarning swav: sharpness: ")
    assert both.startswith("class_labels: together: former name of group_size")


def test_a_nested_choice_accepts_a_former_name() -> None:
    with pytest.warns(FutureWarning, match="^class_labels: together: "):
        built = TypeAdapter(choice_in_list(PAIRS)).validate_python({"class_labels": {"together": 4}})
    assert built.fields["group_size"] == 4


def test_an_inner_component_is_renamed_too(tmp_path: Path) -> None:
    pairs = {"hard_negatives": {"inner": {"class_labels": {"together": 3}}}}
    file = write(tmp_path / "a.yaml", config_of(pairs=pairs))
    with pytest.warns(
        FutureWarning,
        match=rf"a.yaml:{line_of(file, 'together')}: pairs.hard_negatives.inner.class_labels.together: ",
    ):
        made = load(file, [], PretrainConfig)
    assert made.pairs.fields["inner"].fields["group_size"] == 3


def test_an_override_replaces_a_field_whatever_its_name(tmp_path: Path) -> None:
    old = write(tmp_path / "old.yaml", config_of(**MAE))
    new = write(tmp_path / "new.yaml", config_of(objective={"mae": {"mask_ratio": 0.4}}))
    for file, name in ((old, "mask_ratio"), (old, "share_hidden"), (new, "share_hidden")):
        for overrides in ([f"objective.mae.{name}=0.7"], {f"objective.mae.{name}": 0.7}):
            with pytest.warns(FutureWarning):
                made = load(file, overrides, PretrainConfig)
            assert made.objective.fields["mask_ratio"] == 0.7
    with pytest.warns(FutureWarning, match="command line: objective.mae.share_hidden: "):
        made = load(new, ["objective={mae: {share_hidden: 0.7}}"], PretrainConfig)
    assert made.objective.fields["mask_ratio"] == 0.7


def test_both_names_at_once_are_refused(tmp_path: Path) -> None:
    both = {"share_hidden": 0.4, "mask_ratio": 0.4}
    file = write(tmp_path / "a.yaml", config_of(objective={"mae": both}))
    words = "objective.mae.share_hidden: former name of mask_ratio, which is given too; remove share_hidden"
    with pytest.raises(ConfigError, match=f"a.yaml:{line_of(file, 'share_hidden')}: {words}"):
        load(file, [], PretrainConfig)
    with pytest.raises(ConfigError, match=f"configuration: {words}"):
        load(config_of(objective={"mae": both}), [], PretrainConfig)
    twice = {"objective.mae.mask_ratio": 0.4, "objective.mae.share_hidden": 0.4}
    for overrides in (twice, [f"{key}={value}" for key, value in twice.items()]):
        with pytest.raises(ConfigError, match=r"two names of one field; give only objective.mae.mask_ratio"):
            load(config_of(**MAE), overrides, PretrainConfig)


def test_an_error_names_the_line_of_the_former_name(tmp_path: Path, tiny_store: Path) -> None:
    data = {"root": str(tiny_store), "patch_size": [8, 8, 8]}
    file = write(tmp_path / "a.yaml", config_of(data=data, objective={"mae": {"share_hidden": 3}}))
    line = line_of(file, "share_hidden")
    with (
        pytest.warns(FutureWarning),
        pytest.raises(ConfigError, match=rf"a.yaml:{line}: objective.mae.mask_ratio = 3: "),
    ):
        load(file, [], PretrainConfig)
    objective = {"mae": {"block": [8, 8, 8], "share_hidden": 1.0}}  # refused by the component
    write(file, config_of(data=data, objective=objective, out_dir=str(tmp_path / "run")))
    with pytest.warns(FutureWarning):
        result = CliRunner().invoke(app, ["pretrain", str(file), "--check"])
    assert result.exit_code == 2
    assert (
        f"{file}:{line_of(file, 'share_hidden')}: objective.mae: mask_ratio = 1.0 is not between"
        in result.stderr
    )


def test_an_old_run_resumes(tmp_path: Path, tiny_store: Path) -> None:
    config = config_of(
        data={"root": str(tiny_store), "patch_size": [8, 8, 8]},
        pairs={"class_labels": {"column": "sex", "group_size": 2}},
        objective={"mae": {"block": [4, 4, 4], "mask_ratio": 0.5}},
        out_dir=str(tmp_path / "run"),
    )
    pretrain(config)
    stored = tmp_path / "run" / "config.yaml"
    text = stored.read_text()
    old = text.replace("mask_ratio", "share_hidden").replace("group_size", "together")
    assert old != text
    stored.write_text(old)
    with pytest.warns(FutureWarning, match=r"config.yaml: pairs.class_labels.together: ") as found:
        pretrain(config)
    assert len(found) == 2 and stored.read_text() == text
    assert read_status(tmp_path / "run")["state"] == "done"
    stored.write_text(old.replace("share_hidden: 0.5", "share_hidden: 0.6"))
    with (
        pytest.warns(FutureWarning),
        pytest.raises(ConfigError, match=r"objective.mae.mask_ratio: 0.6 -> 0.5\)"),
    ):
        pretrain(config)


def test_an_encoder_of_an_old_run_is_loaded(
    tmp_path: Path, tiny_store: Path, renamed: Callable[..., None]
) -> None:
    data = {"root": str(tiny_store), "patch_size": [8, 8, 8]}
    pretrain(config_of(data=data, out_dir=str(tmp_path / "run")))
    renamed(ENCODERS, "unet3d", widths="channels")
    sidecar = tmp_path / "run" / "encoder.json"
    expected = load_encoder(tmp_path / "run")
    content = json.loads(sidecar.read_text())
    fields = content["architecture"]["unet3d"]
    content["architecture"]["unet3d"] = {"widths" if k == "channels" else k: v for k, v in fields.items()}
    sidecar.write_text(json.dumps(content))
    with pytest.warns(FutureWarning, match=r"encoder.json: encoder.unet3d.widths: .* called channels"):
        found = load_encoder(tmp_path / "run")
    crops = torch.randn(1, found.in_channels, 8, 8, 8)
    assert torch.equal(found(crops).pooled, expected(crops).pooled)


def comparison_of(folder: Path, names: tuple[str, str], **replaced: Any) -> Path:
    """A comparison whose file names a field of `mae` and one of `segmentation` by these names."""
    of_mae, of_task = f"objective.mae.{names[0]}", f"task.segmentation.{names[1]}"
    write(folder / "pre.yaml", config_of(**MAE))
    fine = config_of(task={"segmentation": {}})
    for key in ("pairs", "objective"):
        del fine[key]
    write(folder / "fine.yaml", fine)
    content = {
        "out_dir": str(folder / "runs"),
        "pretrain": {of_mae: 0.5},
        "pretrainings": {
            "a": {"config": str(folder / "pre.yaml")},
            "b": {"config": str(folder / "pre.yaml"), "set": {"objective": {"mae": {names[0]: 0.7}}}},
            "c": {"config": str(folder / "pre.yaml"), "set": {"objective.mae.mask_ratio": 0.8}},
        },
        "finetune": {"config": str(folder / "fine.yaml")},
        "arms": {name: {"pretraining": name} for name in "abc"},
        "reference": "a",
        "vary": {of_task: [0.2, 0.4]},
        "endpoint": {of_task: 0.4},
        "anchors": {"low": "a", "high": "b", "high_endpoint": {of_task: 0.2}},
        "may_differ": [of_mae, "train.lr"],
        "next_endpoints": [{"endpoint": {of_task: 0.2}}],
        "controls": [],
        **replaced,
    }
    return write(folder / "compare.yaml", content)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_comparison_accepts_former_names(tmp_path: Path, renamed: Callable[..., None]) -> None:
    renamed(TASKS, "segmentation", foreground="foreground_fraction")
    old = load(comparison_of(tmp_path, ("share_hidden", "foreground")), [], CompareConfig)
    new = load(comparison_of(tmp_path, ("mask_ratio", "foreground_fraction")), [], CompareConfig)
    assert old == new
    assert old.may_differ == ("objective.mae.mask_ratio", "train.lr")
    assert cells(old) == [(("task.segmentation.foreground_fraction", value),) for value in (0.2, 0.4)]
    runs = plan(old)
    ratios = [run.planned["objective"]["mae"]["mask_ratio"] for run in runs if run.command == "pretrain"]
    assert ratios == [0.5, 0.7, 0.8]
    assert [run.planned["task"]["segmentation"]["foreground_fraction"] for run in runs if run.measures] == [
        *[0.2] * 3,
        *[0.4] * 3,
    ]


def test_each_former_name_of_a_comparison_is_reported_with_its_line(
    tmp_path: Path, renamed: Callable[..., None]
) -> None:
    renamed(TASKS, "segmentation", foreground="foreground_fraction")
    file = comparison_of(tmp_path, ("share_hidden", "foreground"))
    with pytest.warns(FutureWarning) as found:
        load(file, ["pretrain.objective.mae.share_hidden=0.6"], CompareConfig)
    texts = [str(one.message) for one in found]
    lines = file.read_text().splitlines()
    assert len(texts) == len(set(texts)) == 8
    for text in texts[:-1]:
        number = int(text.removeprefix(f"{file}:").split(":")[0])
        assert "share_hidden" in lines[number - 1] or "foreground" in lines[number - 1]
    assert any("may_differ.0.objective.mae.share_hidden: " in text for text in texts)
    assert texts[-1].startswith("command line: pretrain.objective.mae.share_hidden: ")


def test_both_names_in_a_comparison_are_refused(tmp_path: Path) -> None:
    both = {"objective.mae.share_hidden": 0.5, "objective.mae.mask_ratio": 0.5}
    file = comparison_of(tmp_path, ("share_hidden", "foreground_fraction"), pretrain=both)
    words = r"pretrain.objective.mae.share_hidden: former name of objective.mae.mask_ratio, which is given"
    with pytest.raises(ConfigError, match=words):
        load(file, [], CompareConfig)


def test_an_old_run_counts_as_the_planned_one(tmp_path: Path) -> None:
    file = comparison_of(tmp_path, ("mask_ratio", "foreground_fraction"))
    with pytest.warns(FutureWarning):
        run = plan(load(file, [], CompareConfig))[0]
    run.folder.mkdir(parents=True)
    text = yaml.safe_dump(dict(run.planned))
    (run.folder / "config.yaml").write_text(text.replace("mask_ratio", "share_hidden"))
    (run.folder / "status.json").write_text('{"state": "done"}')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert is_done(run)
    (run.folder / "config.yaml").write_text(text.replace("mask_ratio: 0.5", "share_hidden: 0.9"))
    with pytest.raises(ConfigError, match=r"objective.mae.mask_ratio: 0.9 -> 0.5"):
        is_done(run)


@pytest.mark.parametrize(
    ("former", "present", "value"),
    [("screened", "screening", "a.yaml"), ("across", "cross_dataset_ranking", ["b.yaml"])],
)
def test_fields_of_a_comparison(tmp_path: Path, former: str, present: str, value: object) -> None:
    names = ("mask_ratio", "foreground_fraction")
    new = load(comparison_of(tmp_path, names, **{present: value}), [], CompareConfig)
    with pytest.warns(FutureWarning, match=rf"compare.yaml:\d+: {former}: .* called {present};") as found:
        assert load(comparison_of(tmp_path, names, **{former: value}), [], CompareConfig) == new
    assert len(found) == 1


def test_options_of_a_source(renamed: Callable[..., None]) -> None:
    renamed(SOURCES, "simulated", patients="num_patients")
    with pytest.warns(FutureWarning, match="command line: patients: ") as found:
        given = prepare_options(
            "simulated", read_options(["patients=7", "seed=3"], option_schemas("simulated"))
        )
    assert len(found) == 1 and (given.fields["num_patients"], given.options.seed) == (7, 3)


def test_a_present_name_gives_no_warning(quiet: None) -> None:
    load(config_of(objective={"mae": {"mask_ratio": 0.5}}), ["objective.mae.mask_ratio=0.4"], PretrainConfig)
    parse(config_of(), PretrainConfig, "a")
    ClassLabels(group_size=3)


def test_a_declaration_must_name_a_field() -> None:
    registry = Registry("part", "medcl3d.losses")
    with pytest.raises(ValueError, match="part 'cube': 'edge' cannot be the former name of 'side'"):

        @registry.register("cube", renamed={"edge": "side"})
        @dataclass(frozen=True, kw_only=True)
        class Cube:
            edge: float = 1.0
