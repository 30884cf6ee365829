"""Loading of pretrained weights: all requested tensors, or an error with the reason."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from torch import Tensor

from medcl3d.core.errors import ConfigError, Word
from medcl3d.downstream.run_weights import WEIGHTS, read_sidecar, read_weights, weights_path
from medcl3d.downstream.seen_patients import (
    first_few,
    refuse_patients,
    refuse_test_patients,
    refuse_test_scans,
    unknown_origin,
)
from medcl3d.encoders.module import ModuleEncoder
from medcl3d.encoders.network import Network
from medcl3d.layouts.foreign import ForeignWeights, foreign_encoder
from medcl3d.layouts.weights_file import unwrapped
from medcl3d.store.store import Store
from medcl3d.training.checkpoint import checksum

Transfer = Literal["encoder", "all"]


@dataclass(frozen=True)
class Transferred:
    """The metadata of loaded weights, sentences for the user, and the hash of the loaded tensors."""

    sidecar: dict[str, Any]
    notes: tuple[str, ...]
    sha256: str


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
        refuse_patients(path, sidecar["pretraining_patients"], test_patients)
        _require_decoders(path, sidecar, network, transfer)
        unverified = [*foreign.notes, *unknown_origin(path, sidecar)]
    else:
        path = weights_path(Path(source))
        sidecar = read_sidecar(path)
        refuse_test_patients(path, sidecar, test_patients)
        unverified = refuse_test_scans(path, sidecar, test_patients, store)
        _require_decoders(path, sidecar, network, transfer)
        found = read_weights(path, sidecar, f"use the {WEIGHTS} of a pretraining")
    parts = ("encoder", "decoder") if transfer == "all" else ("encoder",)
    weights = _of_parts(unwrapped(found), parts)
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
    # Sorted, since a file of weights is read in any order.
    return Transferred(sidecar, (*notes, *unverified), checksum(dict(sorted(weights.items()))))


def start_of(network: Network, transferred: Transferred | None) -> str | None:
    """Hash of the weights that a run starts from; None if its seed determines them."""
    if transferred is not None:
        return transferred.sha256
    encoder = network.encoder
    passed = isinstance(encoder, ModuleEncoder) and encoder.from_python
    return checksum(encoder.state_dict()) if passed else None


def _require_decoders(path: Path, sidecar: Mapping[str, Any], network: Network, transfer: Transfer) -> None:
    if transfer == "encoder":
        return
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


def mismatch(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """The differences of the weights of a file from those of a network; "" if there are none.

    One line with counts and the first names. A table of all differences is printed to stderr.
    """
    shapes = [name for name in own if name in weights and weights[name].shape != own[name].shape]
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    parts = [f"{len(names)} {what} ({first_few(names, 3)})" for what, names in kinds.items() if names]
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
