"""Pretrained weights into a network: all of what was asked for, or an error that says why not."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from medcl3d.data.content import known_again
from medcl3d.data.store import Store
from medcl3d.encoders.network import Network
from medcl3d.errors import ConfigError, DataError

Transfer = Literal["encoder", "all"]

SCHEMA = 1
WEIGHTS, SIDECAR = "encoder.safetensors", "encoder.json"
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and of torch.compile
NUM_NAMED = 3


@dataclass(frozen=True)
class TransferReport:
    """What was loaded, and what one should know of it.

    parts    part of the network -> how many tensors were loaded (all of them)
    adapted  names of stem weights spread over several input channels
    notes    sentences for the user
    sidecar  what stands beside the weights
    """

    source: Path
    parts: dict[str, int]
    adapted: tuple[str, ...]
    notes: tuple[str, ...]
    sidecar: dict[str, Any]


@dataclass(frozen=True)
class Mismatch:
    """How the weights of a file differ from those of a network."""

    missing: list[str]
    unexpected: list[str]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    loaded: int
    total: int

    @property
    def any(self) -> bool:
        """Something does not fit."""
        return bool(self.missing or self.unexpected or self.shapes)

    def words(self) -> str:
        """One line: counts, and the first names of each kind."""
        kinds = (("missing", self.missing), ("unexpected", self.unexpected), ("of another shape", list(self.shapes)))
        parts = [f"{len(names)} {what} ({_first(names)})" for what, names in kinds if names]
        return f"{100 * self.loaded / max(1, self.total):.0f}% of {self.total} tensors fit; {'; '.join(parts)}"

    def table(self) -> Table:
        """All of it, a line a tensor."""
        table = Table("tensor", "in the file", "in the network", title=f"{self.loaded} of {self.total} tensors fit")
        for name, (theirs, ours) in self.shapes.items():
            table.add_row(name, str(list(theirs)), str(list(ours)))
        for name in self.missing:
            table.add_row(name, "missing", "")
        for name in self.unexpected:
            table.add_row(name, "", "unexpected")
        return table


def _first(names: list[str]) -> str:
    return ", ".join(names[:NUM_NAMED]) + (", ..." if len(names) > NUM_NAMED else "")


def load_weights(
    network: Network, source: Path, transfer: Transfer, test_patients: Iterable[str] = (), store: Store | None = None
) -> TransferReport:
    """Load a pretrained encoder (`all`: decoder too) into `network`, in place.

    source         a pretraining's run folder, or its encoder.safetensors with encoder.json beside it
    test_patients  none of them may have been seen in pretraining
    store          where their scans lie, of which no content may have been seen either, under whatever ids

    ConfigError: the file is absent, damaged, of a newer version, of another architecture, or lacks the decoder
    asked for; every tensor of the parts asked for has to fit. DataError: pretraining saw a test patient, or a test scan.
    An encoder of c input channels fits a network of n where n is a multiple of c: its first weights are repeated n / c times
    and divided by that, so that n / c copies of what it knew look to it as they did.
    """
    path = weights_path(Path(source))
    sidecar = read_sidecar(path)
    test_patients = frozenset(test_patients)
    _refuse_test_patients(path, sidecar, test_patients)
    not_known = _refuse_test_scans(path, sidecar, test_patients, store)
    if transfer == "all" and not sidecar.get("decoder"):
        raise ConfigError(f"transfer = all: {path} has no decoder, its pretraining trained the encoder alone; set transfer: encoder")
    if transfer == "all" and network.decoder is None:
        raise ConfigError(f"transfer = all: this task has no decoder to load that of {path} into; set transfer: encoder")
    parts = ("encoder", "decoder") if transfer == "all" else ("encoder",)
    weights = {name: tensor for name, tensor in _read(path).items() if name.partition(".")[0] in parts}
    own = {name: tensor for name, tensor in network.state_dict().items() if name.partition(".")[0] in parts}
    adapted = _spread_over_channels(weights, own, sidecar.get("in_channels"))
    mismatch = compare(weights, own)
    if mismatch.any:
        Console(stderr=True).print(mismatch.table())
        raise ConfigError(
            f"init = {source}: not the network of this configuration: {mismatch.words()}; pretrained were {sidecar.get('in_channels')} "
            f"input channels and encoder: {json.dumps(sidecar.get('architecture'))}: write the same here, or set init: scratch"
        )
    network.load_state_dict(weights, strict=False)
    notes = [f"{path}: loaded {' and '.join(parts)}, {len(weights)} tensors"]
    if adapted:
        known, channels = sidecar["in_channels"], own[adapted[0]].shape[1]
        times = "" if known == 1 else f" {channels // known} times"
        notes.append(
            f"{path}: pretrained on {'one input channel' if known == 1 else f'{known} input channels'}, here are {channels}: "
            f"{', '.join(adapted)} repeated{times} and divided by {channels // known}"
        )
    notes += not_known
    counts = {part: sum(name.startswith(f"{part}.") for name in weights) for part in parts}
    return TransferReport(path, counts, adapted, tuple(notes), sidecar)


def weights_path(source: Path) -> Path:
    """The weights that a run folder or a path means. ConfigError where there are none yet."""
    path = source / WEIGHTS if source.is_dir() else source
    if path.is_file():
        return path
    if source.is_dir():
        status = source / "status.json"
        state = json.loads(status.read_text(encoding="utf-8")).get("state", "unknown") if status.is_file() else None
        why = f"its run is {state}; let it finish" if state else "it is not a pretraining's run folder"
        raise ConfigError(f"init = {source}: holds no {WEIGHTS}, {why}")
    raise ConfigError(f"init = {source}: there is no such file; give a pretraining's run folder, its {WEIGHTS}, or scratch")


def read_sidecar(path: Path) -> dict[str, Any]:
    """The JSON beside weights. ConfigError where it is absent, damaged or of a newer version."""
    file = path.with_suffix(".json")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        schema = int(content["schema"])
    except FileNotFoundError:
        raise ConfigError(f"{file}: is missing, and with it who was seen in pretraining; copy it from the run folder") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: cannot be read ({error}); copy it from the run folder again") from None
    if schema > SCHEMA:
        raise ConfigError(f"{file}: written by a newer medcl3d (schema {schema}, this one reads up to {SCHEMA}); update medcl3d")
    return dict(content)


def compare(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mismatch:
    """Names and shapes of a file's weights against a network's."""
    shapes = {n: (tuple(weights[n].shape), tuple(own[n].shape)) for n in own if n in weights and weights[n].shape != own[n].shape}
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own]
    return Mismatch(missing, unexpected, shapes, len(own) - len(missing) - len(shapes), len(own))


def _read(path: Path) -> dict[str, Tensor]:
    try:
        found = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a whole safetensors file ({error}); give the {WEIGHTS} of a pretraining") from None
    return {_unwrapped(name): tensor for name, tensor in found.items()}


def _unwrapped(name: str) -> str:
    """A name without the prefixes that wrappers put before it, or inside it."""
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper).replace(f".{wrapper}", ".")
    return _unwrapped(name) if name.startswith(WRAPPERS) else name


def _spread_over_channels(weights: dict[str, Tensor], own: Mapping[str, Tensor], known: object) -> tuple[str, ...]:
    """Repeat weights of the `known` input channels over those of the network (0 1 0 1), divided by how often: their sum over
    equal copies is what it was. Changes `weights`; returns the names."""
    adapted = []
    for name, ours in own.items():
        theirs = weights.get(name)
        if theirs is None or theirs.ndim != 5 or theirs.shape == ours.shape or theirs.shape[1] != known:
            continue
        copies, left = divmod(ours.shape[1], theirs.shape[1])
        if not left and theirs.shape[:1] + theirs.shape[2:] == ours.shape[:1] + ours.shape[2:]:
            weights[name] = theirs.repeat(1, copies, 1, 1, 1) / copies
            adapted.append(name)
    return tuple(adapted)


def _refuse_test_patients(path: Path, sidecar: Mapping[str, Any], test_patients: Collection[str]) -> None:
    if "pretraining_patients" not in sidecar:
        raise ConfigError(f"{path.with_suffix('.json')}: lacks pretraining_patients, so a test patient may be among them; pretrain again")
    seen = sorted(set(sidecar["pretraining_patients"]).intersection(test_patients))
    if seen:
        raise DataError(
            f"{path}: pretraining saw {len(seen)} of the test patients: {', '.join(seen[:10])}{', ...' if len(seen) > 10 else ''}; "
            "pretrain on the training side of this split (patients of another collection need ids of their own)"
        )


def _refuse_test_scans(path: Path, sidecar: Mapping[str, Any], test_patients: Collection[str], store: Store | None) -> list[str]:
    """DataError where a test scan has the content of one that pretraining saw. A note where nobody can tell."""
    if store is None:
        return []
    if "pretraining_content" not in sidecar:
        return [
            f"{path.with_suffix('.json')}: does not say which scans pretraining saw, only whose: a test scan that it saw under another "
            "patient's id would not be noticed; pretrain again where that may be"
        ]
    owner = store.collection.table["patient"]
    rows = np.flatnonzero(owner.isin(test_patients))
    of = {str(store.scans[row]["scan"]): str(owner.iloc[row]) for row in rows}
    seen = known_again((store.scans[row] for row in rows), sidecar["pretraining_content"])
    if seen:
        named = ", ".join(f"{scan} of {of[scan]} ({what})" for scan, what in list(seen.items())[:10])
        raise DataError(
            f"{path}: pretraining saw {len(seen)} of the {len(rows)} test scans of {store.root} under other patient ids: {named}"
            f"{', ...' if len(seen) > 10 else ''}; pretrain without them, or move their patients to the training side here"
        )
    return []
