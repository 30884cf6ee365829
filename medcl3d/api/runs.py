"""Pretrain, fine-tune, evaluate and compare from Python: the commands, with typed results."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from medcl3d.config.packaged import find_config
from medcl3d.config.plain import plain
from medcl3d.config.yaml_tree import COMMAND_LINE
from medcl3d.core.errors import ConfigError
from medcl3d.downstream.evaluate import evaluate as run_evaluation
from medcl3d.downstream.finetune import finetune as run_finetuning
from medcl3d.downstream.pretrained_encoder import PretrainedEncoder, load_encoder
from medcl3d.encoders.module import ModuleEncoder, passing
from medcl3d.evaluation.statistics.intervals import Interval
from medcl3d.io.atomic import write_text
from medcl3d.pairs import PAIRS
from medcl3d.pretraining.pretrain import pretrain as run_pretraining
from medcl3d.training.run_folder import metrics_row

Config = str | Path | Mapping[str, Any]
Overrides = Mapping[str, Any] | None


@dataclass(frozen=True)
class PretrainResult:
    """A finished pretraining.

    path     run folder
    history  the rows of metrics.jsonl, one per logged step, each with `step`
    """

    path: Path
    history: tuple[dict[str, float], ...]

    @property
    def metrics(self) -> dict[str, float]:
        """The last logged row."""
        return dict(self.history[-1]) if self.history else {}

    @property
    def weights(self) -> Path:
        """The encoder's weights."""
        return self.path / "encoder.safetensors"

    def encoder(self, module: nn.Module | None = None) -> PretrainedEncoder:
        """The pretrained encoder, as `medcl3d.load_encoder` gives it."""
        return load_encoder(self.path, module)


@dataclass(frozen=True)
class TaskResult:
    """A finished fine-tuning, or an evaluation of a frozen encoder.

    path     run folder
    metrics  name -> mean with its 95% interval (bootstrap over test patients); `low` and `high` are NaN if
             not defined
    cases    one dict per test case and metric, as in results.json
    split    `labelled` and `test`: patient ids
    """

    path: Path
    metrics: dict[str, Interval]
    cases: tuple[dict[str, Any], ...]
    split: dict[str, list[str]]


@dataclass(frozen=True)
class CompareResult:
    """A finished comparison.

    path        report.html
    conclusion  conclusion.json: what the report states first
    rows        results.csv, one dict per measurement
    """

    path: Path
    conclusion: dict[str, Any]
    rows: tuple[dict[str, str], ...]


def pretrain(
    config: Config,
    *,
    out_dir: str | Path | None = None,
    overrides: Overrides = None,
    encoder: nn.Module | None = None,
) -> PretrainResult:
    """Pretrain an encoder, as `medcl3d pretrain` does.

        run = medcl3d.pretrain("pretrain/mine", out_dir="runs/pre", overrides={"train.steps": 500})
        encoder = run.encoder()

    config     a YAML file, the name of a packaged one, or its content as a dict; under `pairs` also a
               strategy object, and under `encoder` also a module from `medcl3d.as_encoder`
    out_dir    run folder, in place of the configuration's
    overrides  further fields, ``{"train.steps": 100}``
    encoder    a module from `medcl3d.as_encoder`, in place of the configuration's; it is copied, not changed

    The same call again resumes, and returns the same result once the run is done. Stopped, ConfigError,
    DataError, MachineError.
    """
    source, fields, module = _given(config, out_dir, overrides, encoder)
    with passing(module), _overrides_named():
        folder = run_pretraining(source, fields)  # type: ignore[arg-type]
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return PretrainResult(folder, tuple(metrics_row(line) for line in lines))


def finetune(
    config: Config,
    *,
    out_dir: str | Path | None = None,
    overrides: Overrides = None,
    encoder: nn.Module | None = None,
) -> TaskResult:
    """Fine-tune an encoder and measure it on the test patients, as `medcl3d finetune` does.

        result = medcl3d.finetune("finetune/mine", out_dir="runs/fine", overrides={"init": "runs/pre"})
        result.metrics["dice"].mean

    The arguments are those of `pretrain`; `init` in the configuration is a run folder, or scratch.
    """
    source, fields, module = _given(config, out_dir, overrides, encoder)
    with passing(module), _overrides_named():
        return _task_result(run_finetuning(source, fields))  # type: ignore[arg-type]


def evaluate(
    config: Config,
    *,
    out_dir: str | Path | None = None,
    overrides: Overrides = None,
    encoder: nn.Module | None = None,
) -> TaskResult:
    """Evaluate a frozen encoder with probes and retrieval, as `medcl3d evaluate` does.

    The arguments are those of `pretrain`.
    """
    source, fields, module = _given(config, out_dir, overrides, encoder)
    with passing(module), _overrides_named():
        return _task_result(run_evaluation(source, fields))  # type: ignore[arg-type]


def compare(
    config: Config, *, out_dir: str | Path | None = None, overrides: Overrides = None
) -> CompareResult:
    """Run a comparison, or what is missing of it, and write its report, as `medcl3d compare` does.

    config  as in `pretrain`; a dict is written to OUT_DIR/compare.yaml, which the report names

    ConfigError, DataError; Stopped on Ctrl-C; UserError, after the report, if runs failed.
    """
    from medcl3d.comparison.compare import compare as run_comparison  # which imports the plotting libraries

    out = {} if out_dir is None else {"out_dir": str(out_dir)}
    fields = {**(overrides or {}), **out}
    if isinstance(config, Mapping):
        content = plain(config) | out
        if not isinstance(content.get("out_dir"), str):
            remedy = "set it, or call compare(..., out_dir=...)"
            raise ConfigError("out_dir", None, "is missing", remedy, place="configuration", colon=False)
        path = Path(content["out_dir"]).expanduser() / "compare.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, yaml.safe_dump(content, sort_keys=False))
    else:
        path = find_config(str(config))
    texts = {
        key: value if isinstance(value, str) else json.dumps(plain(value)) for key, value in fields.items()
    }
    with _overrides_named():
        report = run_comparison(path, [f"{key}={text}" for key, text in texts.items()])
    with (report.parent / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = tuple(csv.DictReader(file))
    conclusion = json.loads((report.parent / "conclusion.json").read_text(encoding="utf-8"))
    return CompareResult(report, conclusion, rows)


def _given(
    config: Config, out_dir: str | Path | None, overrides: Overrides, encoder: nn.Module | None
) -> tuple[Path | dict[str, Any], dict[str, Any], nn.Module | None]:
    """A file or a dict, the fields to replace, and the encoder that was passed. ConfigError."""
    fields = {**(overrides or {}), **({} if out_dir is None else {"out_dir": str(out_dir)})}
    if not isinstance(config, Mapping):
        source: Path | dict[str, Any] = find_config(str(Path(config).expanduser()))
    else:
        source = dict(config)
        if isinstance(source.get("encoder"), nn.Module):
            passed = source.pop("encoder")
            encoder = passed if encoder is None else encoder
        if "pairs" in source:
            source["pairs"] = _named(source["pairs"])
    if encoder is not None:
        if not isinstance(encoder, ModuleEncoder):
            problem = f"a {type(encoder).__name__} does not declare its maps"
            raise ConfigError("encoder", None, problem, "wrap it, as medcl3d.as_encoder(...)")
        fields["encoder"] = encoder.choice.as_plain()
    return source, fields, encoder


@contextmanager
def _overrides_named() -> Iterator[None]:
    """Errors of fields that were replaced begin with `overrides`, not with `command line`."""
    try:
        yield
    except ConfigError as error:
        if error.line == COMMAND_LINE:
            error.line = "overrides"
        raise


def _named(strategy: Any) -> Any:
    """A strategy object as ``{name: {field: value}}``; anything else as it is."""
    name = next((name for name in PAIRS.names() if PAIRS.get(name) is type(strategy)), None)
    if name is None:
        return strategy
    return {name: {field.name: getattr(strategy, field.name) for field in dataclasses.fields(strategy)}}


def _task_result(folder: Path) -> TaskResult:
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))

    def number(value: float | None) -> float:
        return nan if value is None else value

    metrics = {
        name: Interval(m["mean"], number(m["low"]), number(m["high"]), m["n"])
        for name, m in found["metrics"].items()
    }
    return TaskResult(folder, metrics, tuple(found["cases"]), found["split"])
