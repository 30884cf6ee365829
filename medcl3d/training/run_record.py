"""config.yaml and provenance.json of a run folder: whether a start continues the run that it holds."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from medcl3d.config.loading import parse
from medcl3d.config.plain import Difference, differences, listed, plain
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.distributed.environment import checkout, device_name
from medcl3d.io.atomic import write_text
from medcl3d.io.json_file import read_record
from medcl3d.io.yaml_file import read_yaml
from medcl3d.store.fingerprints import changed

# Fields that do not affect training or its order: a run may resume with other values.
FREE_OPTIONS = [
    "workers",
    "log_every",
    "checkpoint_every",
    "checkpointing",
    "timeout_s",
    "trackers",
    "profile",
]
FREE_FIELDS = (*(f"train.{name}" for name in FREE_OPTIONS), "out_dir", "probe", "validate_every")
SCRATCH_FREE_FIELDS = ("transfer", "step")
"""Fields that describe the weights to start from, without an effect on a run from scratch."""
START_HASH = "start_sha256"
"""The entry of provenance.json with the hash of the weights of `init`, or of a module from Python."""
EARLIER = "earlier"
"""The entry of provenance.json with other environments in which a part of the run was trained."""
PRECISION = ("train.precision", "precision")
"""The field of training and that of an evaluation."""
PACKAGES = ("medcl3d", "torch", "monai", "torchio", "nibabel", "numpy", "scipy", "scikit-image", "pydantic")


def open_record(
    path: Path, config: Mapping[str, Any], provenance: Mapping[str, Any], model: type[Any] | None
) -> bool:
    """Write config.yaml and provenance.json of a run folder, and return whether the run is done.

    ConfigError if the folder holds a run with another configuration or other data, one that started from
    other weights, or one that was trained in another precision so far.
    """
    file, before = path / "config.yaml", read_record(path / "provenance.json")
    extended = list(before.get("extended", ()))
    finished = read_record(path / "status.json").get("state") == "done"
    if file.is_file():
        others = _extensions(file, config, model, before)
        if data := changed(before, provenance):
            problem = f"the data changed since this run started: {', '.join(data)}"
            remedy = "set another out_dir, or prepare the data as before"
            raise ConfigError(problem=problem, remedy=remedy, place=path)
        _require_start(path, before, provenance)
        extended += [[found.old, found.new] for found in others]
        finished = finished and not others
        if not finished and any((path / "checkpoints").glob("*.pt")):
            _require_precision(path, before, provenance)
    write_text(file, yaml.safe_dump(dict(config), sort_keys=False))
    if not finished:
        now = versions()
        content = {**provenance, **now, "command": sys.argv}
        content |= {"extended": extended} if extended else {}
        content |= {EARLIER: earlier} if (earlier := _earlier(path, before, now)) else {}
        write_text(path / "provenance.json", json.dumps(content, indent=1) + "\n")
    return finished


def _earlier(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The environments in which checkpoints of a run were trained, as far as they differ from the one now."""
    found = list(before.get(EARLIER, ()))
    then = {key: before[key] for key in now if key in before}
    if then != now and then not in found and any((path / "checkpoints").glob("*.pt")):
        found.append(then)
    return found


def _extensions(
    file: Path, config: Mapping[str, Any], model: type[Any] | None, before: Mapping[str, Any]
) -> list[Difference]:
    """The changes of a configuration that continue a finished run; ConfigError for any other change."""
    try:
        old = with_defaults(read_yaml(file), model, file)
    except (OSError, ValueError, yaml.YAMLError) as error:
        remedy = "delete its folder to run it again"
        raise DataError(file, f"is damaged ({' '.join(str(error).split())})", remedy) from None
    others = other_fields(old, config, before)
    if not all(map(is_extension, others)):
        problem = f"holds a run with another configuration ({listed(others, 5)})"
        remedy = "set another out_dir, or remove the folder to start again"
        raise ConfigError(problem=problem, remedy=remedy, place=file.parent)
    return others


def _require_start(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """ConfigError if a run started from other weights than it would start from now."""
    then, here = before.get(START_HASH), now.get(START_HASH)
    if then is not None and here is not None and then != here:
        problem = "this run started from other weights of init, or from another module from Python"
        remedy = "set another out_dir, or remove the folder to start again; to measure a module with random "
        remedy += "weights twice, call torch.manual_seed before it is constructed"
        raise ConfigError(problem=problem, remedy=remedy, place=path)


def _require_precision(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """ConfigError if a run would continue from its checkpoints in another precision, as on another device."""
    then, here = _precision(before), _precision(now)
    if then is not None and here is not None and then != here:
        problem = f"this run was trained in {then} so far, and would continue in {here} on this device"
        remedy = f"continue on a device like the first, set train.precision={before['precision']} (slow on a "
        remedy += "device without it), or remove the folder to start again"
        raise ConfigError(problem=problem, remedy=remedy, place=path)


def _precision(provenance: Mapping[str, Any]) -> str | None:
    """The precision of a run; None for a run of a version that did not record it."""
    return (
        f"{found}{' with TF32' if provenance.get('tf32') else ''}"
        if (found := provenance.get("precision"))
        else None
    )


def other_fields(
    old: Any, new: Mapping[str, Any], provenance: Mapping[str, Any], free: Sequence[str] = ()
) -> list[Difference]:
    """The fields of a run's configuration that differ from `new` and may not.

    `auto` may be replaced by the precision that it was in the run, and back.
    provenance  of the run
    free        more fields that may differ
    """
    may_differ = (*FREE_FIELDS, *free, *(SCRATCH_FREE_FIELDS if new.get("init") == "scratch" else ()))
    same = ("auto", provenance.get("precision"))
    return [
        found
        for found in differences(old, dict(new))
        if not found.within(may_differ)
        and not (found.field in PRECISION and found.old in same and found.new in same)
    ]


def is_extension(found: Difference) -> bool:
    """Whether a run has more training steps than before: it then resumes from its last checkpoint."""
    return (
        found.field == "train.steps"
        and isinstance(found.old, int)
        and isinstance(found.new, int)
        and found.new > found.old
    )


def with_defaults(old: Any, model: type[Any] | None, file: Path, quiet: bool = False) -> Any:
    """The configuration of a run, read from `file`, with current defaults of `model` for missing fields.

    quiet: without a FutureWarning for former names of fields.
    """
    try:
        return old if model is None else plain(parse(old, model, str(file), quiet))
    except ConfigError:
        # This version refuses the old configuration: compare it unchanged, so that the message names fields.
        return old


def versions() -> dict[str, Any]:
    """The environment of a run: versions of packages and Python, commit and changes, device, threads."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    hardware = {"device": device_name(), "threads": torch.get_num_threads()}
    return {"versions": found, "python": platform.python_version(), **checkout(), **hardware}
