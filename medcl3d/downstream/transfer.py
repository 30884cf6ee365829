"""Loading of pretrained weights: all requested tensors, or an error with the reason."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from torch import Tensor

from medcl3d.core.errors import ConfigError, DataError, Word
from medcl3d.encoders.network import Network
from medcl3d.layouts.foreign import UNKNOWN, ForeignWeights, foreign_encoder
from medcl3d.store.content_hashes import scans_with_content
from medcl3d.store.store import Store
from medcl3d.training.run_folder import WEIGHTS_HASH, read_status

Transfer = Literal["encoder", "all"]

SCHEMA = 1
SCRATCH = "scratch"  # `init` without a pretraining
WITHHELD = "withheld"  # the patients of pretraining, in an export
WEIGHTS = "encoder.safetensors"
RUN = f"use the run folder of a pretraining, its {WEIGHTS}"
SAW_UNKNOWN = "it is unknown which patients these weights were trained on; test patients may be among them"
WRAPPERS = ("module.", "_orig_mod.")  # prefixes of DistributedDataParallel and torch.compile


@dataclass(frozen=True)
class Transferred:
    """The metadata of loaded weights, and sentences for the user."""

    sidecar: dict[str, Any]
    notes: tuple[str, ...]


def load_weights(
    network: Network,
    source: Path | ForeignWeights,
    transfer: Transfer,
    test_patients: Iterable[str] = (),
    store: Store | None = None,
) -> Transferred:
    """Load a pretrained encoder (`all`: with its decoder) into `network`, in place.

    source         the run folder of a pretraining, its weights after a step (``RUN@STEP``), or its
                   encoder.safetensors with encoder.json in the same folder; or weights of another project
    test_patients  patients that pretraining must not have used
    store          store of their scans, whose content pretraining must not have used either, under any ids

    ConfigError: the file is missing, damaged, of a newer version or another architecture, or lacks the
    requested decoder; all requested tensors must match. DataError: pretraining used a test patient or a test
    scan. An encoder with c input channels can be loaded into a network with n if n is a multiple of c: its
    first weights are repeated n / c times and divided by n / c, so that n / c copies of the same channels
    give the same output.
    """
    test_patients = frozenset(test_patients)
    if isinstance(source, ForeignWeights):
        path, foreign = source.weights, foreign_encoder(source)
        sidecar, found = foreign.sidecar, {f"encoder.{name}": one for name, one in foreign.weights.items()}
        _refuse_patients(path, sidecar["pretraining_patients"], test_patients)
        unverified = [*foreign.notes, *_of_unknown_origin(path, sidecar)]
    else:
        path = weights_path(Path(source))
        sidecar = read_sidecar(path)
        _refuse_test_patients(path, sidecar, test_patients)
        unverified = _refuse_test_scans(path, sidecar, test_patients, store)
        found = read_weights(path, sidecar, f"use the {WEIGHTS} of a pretraining")
    if transfer == "all":
        _require_decoders(path, sidecar, network)
    parts = ("encoder", "decoder") if transfer == "all" else ("encoder",)
    weights = _of_parts({_unwrapped(name): tensor for name, tensor in found.items()}, parts)
    own = _of_parts(network.state_dict(), parts)
    adapted = _repeat_over_channels(weights, own, sidecar.get("in_channels"))
    different = mismatch(weights, own)
    if different:
        raise ConfigError(
            "init",
            source,
            f"not the network of this configuration: {different}",
            f"it was pretrained with {sidecar.get('in_channels')} input channels and encoder: "
            f"{json.dumps(sidecar.get('architecture'))}: use the same here, or set init: scratch",
        )
    network.load_state_dict(weights, strict=False)
    notes = [f"{path}: loaded {' and '.join(parts)}, {len(weights)} tensors"]
    if adapted:
        known, channels = sidecar["in_channels"], own[adapted[0]].shape[1]
        times = "" if known == 1 else f" {channels // known} times"
        notes.append(
            f"{path}: pretrained with {'one input channel' if known == 1 else f'{known} input channels'}, "
            f"this network has {channels}: {', '.join(adapted)} repeated{times} and divided by "
            f"{channels // known}"
        )
    return Transferred(sidecar, (*notes, *unverified))


def _require_decoders(path: Path, sidecar: Mapping[str, Any], network: Network) -> None:
    if sidecar.get("decoder") and network.decoder is not None:
        return
    why = (
        f"this task has no decoder for that of {path}"
        if sidecar.get("decoder")
        else f"{path} has no decoder, only a pretrained encoder"
    )
    raise ConfigError("transfer", Word("all"), why, "set transfer: encoder")


def _of_parts(weights: Mapping[str, Tensor], parts: Sequence[str]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if name.partition(".")[0] in parts}


Init = str | ForeignWeights
"""Where weights come from: scratch, a pretraining, or a file of another project."""


def after_step(init: Init, step: int | None) -> Init:
    """`init` with a step of its pretraining (RUN@STEP); scratch and foreign weights have no steps."""
    if step is None or init == SCRATCH or isinstance(init, ForeignWeights):
        return init
    return f"{init}@{step}"


def source_of(init: Init) -> Path | ForeignWeights:
    """What `load_weights` reads, for an `init` other than scratch."""
    return init if isinstance(init, ForeignWeights) else Path(init)


def weights_path(source: Path) -> Path:
    """The path of the weights in a run folder, after a step of it (``RUN@STEP``), or of a file.

    ConfigError if they do not exist.
    """
    folder, at, step = str(source).rpartition("@")
    if at and step.isdecimal() and not source.exists():
        return _after_step(source, Path(folder), int(step))
    path = source / WEIGHTS if source.is_dir() else source
    if path.is_file():
        return path
    if not source.is_dir():
        raise ConfigError("init", source, "file not found", f"{RUN}, or scratch")
    why = unfinished(source) or "not the run folder of a pretraining; use one"
    raise ConfigError("init", source, f"holds no {WEIGHTS}, {why}")


def unfinished(run: Path) -> str:
    """The state of a run that has not written its weights; "" if it is done, or the folder has no run."""
    status = read_status(run)
    state = status.get("state", "unknown")
    return f"its run is {state}; let it finish" if status and state != "done" else ""


def _after_step(source: Path, folder: Path, step: int) -> Path:
    """The weights of a run folder after a step that `train.keep_steps` names, or after the last one."""
    last = folder / WEIGHTS
    if last.is_file() and read_sidecar(last).get("step") == step:
        return last
    path = folder / f"encoder_{step}.safetensors"
    if path.is_file():
        return path
    known = sorted(int(file.stem.removeprefix("encoder_")) for file in folder.glob("encoder_*.safetensors"))
    steps = f"it has steps {', '.join(map(str, known))}" if known else "it has none of single steps"
    raise ConfigError(
        f"init = {source}: {folder} has no weights after step {step}, {steps}; pretrain with "
        f"train.keep_steps=[{step}], or use another step"
    )


def read_sidecar(path: Path, needed: Sequence[str] = ()) -> dict[str, Any]:
    """The metadata of weights, from the JSON file in the same folder.

    ConfigError if missing, damaged, of a newer version, or without one of the `needed` entries.
    """
    file = path.with_suffix(".json")
    problem, remedy = "", "copy it from the run folder again"
    try:
        content: dict[str, Any] = dict(json.loads(file.read_text(encoding="utf-8")))
        schema = int(content["schema"])
        lacking = [name for name in needed if name not in content]
        if lacking:
            problem = f"lacks {', '.join(lacking)}"
        if schema > SCHEMA:
            problem = f"written by a newer medcl3d (schema {schema}, this version reads up to {SCHEMA})"
            remedy = "update medcl3d"
    except FileNotFoundError:
        problem = "is missing, so the patients of pretraining are unknown"
        remedy = "copy it from the run folder"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"cannot be read ({error})"
    if problem:
        raise ConfigError(problem=problem, remedy=remedy, place=file)
    return content


def mismatch(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """The differences of the weights of a file from those of a network; "" if there are none.

    One line with counts and the first names. A table of all differences is printed to stderr.
    """
    shapes = [name for name in own if name in weights and weights[name].shape != own[name].shape]
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    parts = [f"{len(names)} {what} ({_first(names, 3)})" for what, names in kinds.items() if names]
    if not parts:
        return ""
    matching = len(own) - len(missing) - len(shapes)
    title = f"{matching} of {len(own)} tensors match"
    table = Table("tensor", "in the file", "in the network", title=title)
    for name in shapes:
        table.add_row(name, str(list(weights[name].shape)), str(list(own[name].shape)))
    for name in missing:
        table.add_row(name, "missing", "")
    for name in unexpected:
        table.add_row(name, "", "unexpected")
    Console(stderr=True).print(table)
    return f"{100 * matching / max(1, len(own)):.0f}% of {len(own)} tensors match; {'; '.join(parts)}"


def _first(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def read_weights(path: Path, sidecar: Mapping[str, Any], remedy: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    ConfigError with `remedy` if the file is not complete, or not the one that its sidecar describes.
    """
    try:
        content = path.read_bytes()
        tensors = from_safetensors(content)
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(
            problem=f"not a complete safetensors file ({error})", remedy=remedy, place=path
        ) from None
    written = sidecar.get(WEIGHTS_HASH)  # absent in runs of version 0.1
    if written is not None and hashlib.sha256(content).hexdigest() != written:
        described = path.with_suffix(".json").name
        problem = f"damaged, or not the weights that {described} describes (SHA-256 differs)"
        raise ConfigError(problem=problem, remedy=remedy, place=path)
    return tensors


def _unwrapped(name: str) -> str:
    """A name without the prefixes that wrappers add in front or inside."""
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper).replace(f".{wrapper}", ".")
    return _unwrapped(name) if name.startswith(WRAPPERS) else name


def _repeat_over_channels(
    weights: dict[str, Tensor], own: Mapping[str, Tensor], known: object
) -> tuple[str, ...]:
    """Repeat weights of `known` input channels for all of the network (0 1 0 1), divided by the copies.

    The output for equal copies is unchanged. Changes `weights`; returns the names.
    """
    adapted = []
    for name, ours in own.items():
        theirs = weights.get(name)
        if theirs is None or theirs.ndim != 5 or theirs.shape == ours.shape or theirs.shape[1] != known:
            continue
        copies, remainder = divmod(ours.shape[1], theirs.shape[1])
        if not remainder and theirs.shape[:1] + theirs.shape[2:] == ours.shape[:1] + ours.shape[2:]:
            weights[name] = theirs.repeat(1, copies, 1, 1, 1) / copies
            adapted.append(name)
    return tuple(adapted)


def _refuse_test_patients(path: Path, sidecar: Mapping[str, Any], test_patients: Collection[str]) -> None:
    if sidecar.get("pretraining_patients") == WITHHELD:
        if test_patients:
            problem = (
                "an export, which does not list the patients of pretraining; test patients may be among them"
            )
            raise ConfigError(problem=problem, remedy="use the run folder", place=path.with_suffix(".json"))
        return
    if not isinstance(sidecar.get("pretraining_patients"), list):
        problem, remedy = "lacks pretraining_patients, which may include test patients", "pretrain again"
        raise ConfigError(problem=problem, remedy=remedy, place=path.with_suffix(".json"))
    _refuse_patients(path, sidecar["pretraining_patients"], test_patients)


def _refuse_patients(path: Path, used: Sequence[str] | str, test_patients: Collection[str]) -> None:
    """DataError if pretraining used test patients; patients that are unknown are not refused."""
    seen = [] if used == UNKNOWN else sorted(set(used).intersection(test_patients))
    if seen:
        raise DataError(
            path,
            f"pretraining used {len(seen)} of the test patients: {_first(seen)}",
            "pretrain on the training patients of this split (patients of another collection need "
            "different ids)",
        )


def _of_unknown_origin(path: Path, sidecar: Mapping[str, Any]) -> list[str]:
    """A note if the patients that the weights have seen are unknown."""
    if sidecar["pretraining_patients"] != UNKNOWN:
        return []
    return [f"{path}: {SAW_UNKNOWN}"]


def _refuse_test_scans(
    path: Path, sidecar: Mapping[str, Any], test_patients: Collection[str], store: Store | None
) -> list[str]:
    """DataError if a test scan has the content of a scan used in pretraining.

    Returns a note if this is unknown.
    """
    if store is None:
        return []
    if "pretraining_content" not in sidecar:
        return [
            f"{path.with_suffix('.json')}: lists the patients of pretraining but not the content of their "
            "scans, so a test scan used under another patient id would not be detected; pretrain again if "
            "that is possible"
        ]
    owner = store.collection.table["patient"]
    rows = np.flatnonzero(owner.isin(test_patients))
    of = {str(store.scans[row]["scan"]): str(owner.iloc[row]) for row in rows}
    seen = scans_with_content((store.scans[row] for row in rows), sidecar["pretraining_content"])
    if seen:
        named = [f"{scan} of {of[scan]} ({match})" for scan, match in seen.items()]
        raise DataError(
            path,
            f"pretraining used {len(seen)} of the {len(rows)} test scans of {store.root} under other "
            f"patient ids: {_first(named)}",
            "pretrain without them, or move their patients to the training side here",
        )
    return []
