"""`medcl3d view`: one offline HTML page of scans in three planes, with what finished runs make of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch

from medcl3d.config.loading import load
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.distributed.collectives import process_group
from medcl3d.distributed.precision import autocast_dtype
from medcl3d.downstream.dense.voxel_features import DenseEncoder, VoxelFeatures
from medcl3d.downstream.finetune import FinetuneConfig
from medcl3d.downstream.predict.predictor import WEIGHTS as MODEL
from medcl3d.downstream.predict.predictor import load_run
from medcl3d.downstream.pretrained_encoder import load_encoder
from medcl3d.downstream.run_weights import WEIGHTS as ENCODER
from medcl3d.downstream.run_weights import read_sidecar
from medcl3d.io.atomic import write_text
from medcl3d.io.disk_space import require_writable
from medcl3d.io.json_file import read_record
from medcl3d.io.progress import track
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.parts import Pretraining, assemble
from medcl3d.store.scan_selection import DataConfig, split_of
from medcl3d.store.splits import Split
from medcl3d.store.store import Store
from medcl3d.viewer.chosen_scans import choose_scans
from medcl3d.viewer.drawn_views import drawn_on, first_scans
from medcl3d.viewer.features import describe, overlays
from medcl3d.viewer.scan_grid import MOST_VOXELS, ShownGrid, packed, shown_scan
from medcl3d.viewer.targets import Arm, arms_of, is_store

MIB = 1024**2


@dataclass(frozen=True)
class Shown:
    """The scans of a page, as rows of their store."""

    store: Store
    split: Split
    scans: list[int]


def view(
    target: Path,
    out: Path,
    overrides: Sequence[str] = (),
    num_scans: int = 4,
    say: Callable[[str], None] = print,
) -> Path:
    """Write the page of a store, of a finished run, or of the finished runs of a comparison.

    overrides  fields of the runs' configurations, as ``data.root=PATH`` if the store was moved
    num_scans  number of shown scans

    ConfigError: not a target, or a run without weights. DataError: the store cannot be read.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        problem, remedy = "the page is an HTML file", "use a name that ends in .html"
        raise ConfigError(problem=problem, remedy=remedy, place=f"--out {out}")
    if num_scans < 1:
        raise ConfigError(problem="at least one scan is needed", place=f"--scans {num_scans}")
    require_writable(out, "--out", is_file=True)
    if is_store(target):
        shown, layers = _of_store(target, overrides, num_scans), list[dict[str, Any]]()
    else:
        shown, layers = _of_runs(arms_of(target), overrides, num_scans, say)
    say(f"{out}: {len(shown.scans)} scans of {shown.store.root}")
    scans = [shown_scan(shown.store, shown.split, scan) for scan in track(shown.scans, "scans")]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, _page(target, shown, scans, layers))
    say(f"{out}: {out.stat().st_size / MIB:.1f} MiB, one file that needs no network")
    return out


def _of_store(root: Path, overrides: Sequence[str], num: int) -> Shown:
    if overrides:
        problem = f"{overrides[0]!r} is a field of a run, but this is a store"
        raise ConfigError(problem=problem, remedy="leave it out", place=root)
    store = Store.open(root)
    split = split_of(store, DataConfig(root=root))
    return Shown(store, split, choose_scans(store, split, num))


def _of_runs(
    arms: Sequence[Arm], overrides: Sequence[str], num: int, say: Callable[[str], None]
) -> tuple[Shown, list[dict[str, Any]]]:
    """The shown scans, and the layers of each arm on them."""
    first = arms[0].runs[0]
    config = _config(first, PretrainConfig if arms[0].pretraining else FinetuneConfig, overrides)
    store = _open_store(first, config.data)
    split = split_of(store, config.data)
    tuned = next((arm.finetuning for arm in arms if arm.finetuning is not None), None)
    sides: tuple[str, ...] = ("test", "validation")
    if tuned is not None:  # a choice that is made on validation patients must not see test patients
        sides = (_config(tuned, FinetuneConfig, overrides).measured_on,)
    preferred = [] if arms[0].pretraining is None else first_scans(_assembled(first, config))
    chosen = choose_scans(
        store,
        split,
        num,
        first=preferred,
        modalities=config.data.modalities,
        training=any(arm.pretraining for arm in arms),
        held_out=sides,
    )
    shown = Shown(store, split, chosen)
    layers = []
    with process_group() as device:
        for arm in arms:
            say(f"{arm.name}: {' and '.join(map(str, arm.runs))}")
            layers.append(_layers(arm, shown, overrides, device, len(arms)))
    return shown, layers


def _layers(
    arm: Arm, shown: Shown, overrides: Sequence[str], device: torch.device, arms: int
) -> dict[str, Any]:
    """What the page shows of an arm: views, points, features, predictions."""
    found: dict[str, Any] = {"name": arm.name, "facts": []}
    if arm.pretraining is not None:
        config = _config(arm.pretraining, PretrainConfig, overrides)
        _same_store(arm.pretraining, config.data, shown)
        found |= drawn_on(_assembled(arm.pretraining, config), shown.scans)
        found |= _features(arm, config, shown, device, arms)
        found["facts"].append(
            f"pretraining {arm.pretraining}: {config.pairs.name}, {config.objective.name}; three principal "
            f"components have {100 * found['variance']:.0f}% of the variance of its dense features"
            f"{_changed(arm.pretraining / ENCODER, shown.store)}"
        )
    if arm.finetuning is not None:
        tuned = _config(arm.finetuning, FinetuneConfig, overrides)
        _same_store(arm.finetuning, tuned.data, shown)
        found |= _predictions(arm.finetuning, tuned, shown, device)
        dice = read_record(arm.finetuning / "results.json").get("metrics", {}).get("dice", {}).get("mean")
        measured = "" if dice is None else f" (mean Dice {dice:.3f} on its {tuned.measured_on} patients)"
        changed = _changed(arm.finetuning / MODEL, shown.store)
        found["facts"].append(f"fine-tuning {arm.finetuning}: predictions{measured}{changed}")
    return found


def _features(
    arm: Arm, config: PretrainConfig, shown: Shown, device: torch.device, arms: int
) -> dict[str, Any]:
    assert arm.pretraining is not None
    pretrained, store = load_encoder(arm.pretraining), shown.store
    _same_channels(arm.pretraining, pretrained.in_channels, store)
    dtype = autocast_dtype(config.train.precision, device)
    network = pretrained.network.to(device)
    encoder = DenseEncoder(network, store, VoxelFeatures(), pretrained.patch_size, device, dtype)
    modality = store.collection.table["modality"].astype(str)
    described = describe(encoder, store, shown.scans, arm.name, arms)
    return overlays(described, [modality.iloc[scan] for scan in shown.scans])


def _predictions(run: Path, config: FinetuneConfig, shown: Shown, device: torch.device) -> dict[str, Any]:
    """Label values that a segmentation predicts, on the shown grids."""
    store = shown.store
    kinds = read_sidecar(run / MODEL, ("intensity",))["intensity"]["kind"]
    predictor = load_run(run, kinds.split("+")[0])  # the store is normalised already, so any kind will do
    _same_channels(run, predictor.num_channels, store)
    values = np.array([0, *predictor.classes], dtype=np.uint16)
    model, dtype = predictor.model.to(device), autocast_dtype(predictor.precision, device)
    found = []
    for scan in track(shown.scans, f"{run.name}: predictions"):
        indices = predictor.task.segment(model, store, scan, predictor.patch_size, device, dtype)
        found.append(packed(values[ShownGrid.of(store, scan).every(indices)]))
    return {"predictions": found, "classes": list(predictor.classes)}


def _config(run: Path, model: type[Any], overrides: Sequence[str]) -> Any:
    return load(run / "config.yaml", overrides, model)


def _open_store(run: Path, data: DataConfig) -> Store:
    """The store of a run. DataError if it was moved."""
    if not is_store(data.root):
        problem = f"data.root = {data.root}: contains no finished store"
        raise DataError(run / "config.yaml", problem, "if it was moved, give data.root=PATH")
    return Store.open(data.root)


def _assembled(run: Path, config: PretrainConfig) -> Pretraining:
    try:
        return assemble(config)
    except (ConfigError, DataError) as error:
        error.line = error.line or str(run / "config.yaml")
        raise


def _same_store(run: Path, data: DataConfig, shown: Shown) -> None:
    """ConfigError if a run of a comparison has another store."""
    if data.root.resolve() != shown.store.root.resolve():
        problem = f"data.root = {data.root}: other arms have {shown.store.root}"
        raise ConfigError(problem=problem, remedy="view this run alone", place=run / "config.yaml")


def _changed(weights: Path, store: Store) -> str:
    """A note if the store is not the one that a run was trained on."""
    trained_on = read_sidecar(weights).get("provenance", {}).get("data")
    return "" if trained_on in (None, store.fingerprint()) else "; it was trained on another store"


def _same_channels(run: Path, channels: int, store: Store) -> None:
    if channels != store.num_channels:
        problem = f"was trained on {channels} channels, but {store.root} has {store.num_channels}"
        raise ConfigError(problem=problem, remedy="give the data.root of its scans", place=run)


def _page(
    target: Path, shown: Shown, scans: Sequence[Mapping[str, Any]], arms: Sequence[Mapping[str, Any]]
) -> str:
    """The page as text; it loads no other files."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medcl3d.viewer"),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    store = shown.store
    names = {value: name for value, name in store.label_names.items() if value}
    data = {"scans": scans, "arms": arms, "names": names}
    return environment.get_template("page.html.j2").render(
        title=f"{'/'.join(target.resolve().parts[-2:])}: scans in three planes",
        facts=_facts(shown, scans),
        data=data,
    )


def _facts(shown: Shown, scans: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences on what is shown and what is not."""
    store, table = shown.store, shown.store.collection.table
    words = {"train": "training", "test": "test", "validation": "validation", "": "unassigned"}
    counts = []
    for side, word in words.items():
        of_side = [scan for scan in scans if scan["side"] == side]
        if of_side:
            patients = len({scan["patient"] for scan in of_side})
            counts.append(f"{_number(len(of_side), 'scan')} of {_number(patients, f'{word} patient')}")
    total = f"{_number(len(store), 'scan')} of {_number(table['patient'].nunique(), 'patient')}"
    found = [f"Shown are {' and '.join(counts)}. The store {store.root} has {total}."]
    reduced = [scan["name"] for scan in scans if max(scan["step"]) > 1]
    if reduced:
        found.append(
            f"Every second voxel or fewer, at most {MOST_VOXELS} per axis, of {len(reduced)} scans: "
            f"{', '.join(reduced)}."
        )
    if store.num_channels > 1:
        found.append(f"Channel 1 of {store.num_channels}.")
    if not any(scan["label"] for scan in scans):
        found.append("No shown scan has a label map.")
    return found


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
