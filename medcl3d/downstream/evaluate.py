"""`medcl3d evaluate`: evaluate a frozen encoder with probes, without training it further."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic.dataclasses import dataclass

from medcl3d.config.choices import choice_in_list, choice_of
from medcl3d.config.field_types import STRICT, Choice, PositiveInt, Seed
from medcl3d.config.loading import load
from medcl3d.core.errors import ConfigError, DataError, Word
from medcl3d.distributed.collectives import process_group, say, world_size
from medcl3d.distributed.precision import Precision, autocast_dtype
from medcl3d.distributed.seeding import seed_weights
from medcl3d.downstream.crop_dataset import Example, mean_outputs, targets_of, whole_scans
from medcl3d.downstream.dense.context import DenseContext, DenseProbe
from medcl3d.downstream.dense.controls import DescribedVoxels
from medcl3d.downstream.dense.label_propagation import LabelPropagation
from medcl3d.downstream.dense.measure import measure_dense
from medcl3d.downstream.dense.voxel_features import DenseEncoder, VoxelFeatures
from medcl3d.downstream.dense.voxel_matching import VoxelMatching
from medcl3d.downstream.dense.voxel_probe import VoxelProbe
from medcl3d.downstream.few_cases import few_training_cases
from medcl3d.downstream.finetune import SCRATCH
from medcl3d.downstream.label_selection import labelled_scans, scans_to_test
from medcl3d.downstream.landmarks import Landmarks
from medcl3d.downstream.probes import (
    Labelled,
    LinearProbe,
    NearestNeighbours,
    Probe,
    Probed,
    Retrieval,
    finite,
)
from medcl3d.downstream.results import finish, run_of
from medcl3d.downstream.task import Evaluation
from medcl3d.downstream.tasks import TASKS, task_of
from medcl3d.downstream.tasks.classification import CropClassification
from medcl3d.downstream.transfer import Transfer, load_weights, read_sidecar, weights_path
from medcl3d.encoders import ENCODERS
from medcl3d.encoders.network import Network, build_network, check_patch_size
from medcl3d.evaluation.statistics.intervals import Interval
from medcl3d.io.disk_space import require_writable
from medcl3d.store.scan_selection import DataConfig, pretraining_scans, split_of
from medcl3d.store.splits import Measured, Split
from medcl3d.store.store import Store


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluateConfig:
    """Configuration of an evaluation of a frozen encoder: scans, encoder, probes.

    init          scratch (an untrained encoder: the control), the run folder of a pretraining, RUN@STEP
                  (after a step of `train.keep_steps`), or its encoder.safetensors
    task          a task with classes or findings; linear and knn are trained on its training examples
                  and evaluated on its test examples
    num_labelled  number of training patients whose labels are used (default: all)
    linear, knn, retrieval    the probes; at least one, null for none
    crop_retrieval            retrieval among test examples of the task, as `{same: class, differ: patient}`
    landmarks                 matching of corresponding points between test patients, in scans with label maps
    voxel_probe, label_propagation, voxel_matching   dense probes, of single voxels of whole scans
    voxel_features            how dense probes compute the features of a voxel
    measured_on   test patients, or validation patients while choices are still made
    seed          seed of an untrained encoder, the draw of labelled patients, the folds, the bootstrap
    """

    data: DataConfig
    encoder: choice_of(ENCODERS)  # type: ignore[valid-type]
    out_dir: Path
    init: str = SCRATCH
    task: choice_in_list(TASKS) | None = None  # type: ignore[valid-type]
    num_labelled: PositiveInt | None = None
    linear: LinearProbe | None = None
    knn: NearestNeighbours | None = None
    retrieval: Retrieval | None = None
    crop_retrieval: Retrieval | None = None
    landmarks: Landmarks | None = None
    voxel_probe: VoxelProbe | None = None
    label_propagation: LabelPropagation | None = None
    voxel_matching: VoxelMatching | None = None
    voxel_features: VoxelFeatures = VoxelFeatures()
    precision: Precision = "auto"
    measured_on: Measured = "test"
    seed: Seed = 0

    @property
    def dense(self) -> dict[str, DenseProbe]:
        """The configured dense probes by name."""
        probes: dict[str, DenseProbe | None] = {
            "voxel_probe": self.voxel_probe,
            "label_propagation": self.label_propagation,
            "voxel_matching": self.voxel_matching,
        }
        return {name: probe for name, probe in probes.items() if probe is not None}


def evaluate(config_path: Path, overrides: Sequence[str] = (), check: bool = False) -> Path:
    """Evaluate a frozen encoder and return the run folder. Does nothing if the evaluation is done."""
    config = load(config_path, overrides, EvaluateConfig)
    with process_group() as device:
        if world_size() > 1:
            raise ConfigError(problem="evaluate runs in one process", remedy="start it without torchrun")
        store, split, network, notes = assemble(config)
        origin = "untrained" if config.init == SCRATCH else f"from {config.init}"
        say("\n".join([f"{config.encoder.name}, frozen, {origin}", *notes]))
        if check:
            require_writable(config.out_dir, "out_dir")
            return config.out_dir
        with run_of(config, config.out_dir, store, "evaluate", config.precision, device) as run:
            if run is not None:
                run.status("running", 0)
                dtype = autocast_dtype(config.precision, device)
                frozen = _Frozen(network.eval().to(device), store, device, dtype)
                found, sides = measure(config, frozen, split)
                finish(run, found, sides, config, 0)
    return config.out_dir


def assemble(config: EvaluateConfig) -> tuple[Store, Split, Network, list[str]]:
    """Open the store and load the weights of the encoder.

    ConfigError, DataError if parts are incompatible.
    """
    _refuse_incomplete(config)
    store = Store.open(config.data.root)
    split = split_of(store, config.data).measured_on(config.measured_on)
    _check_probes(config, store, split)
    seed_weights(config.seed)
    decoder = bool(config.dense) and config.voxel_features.maps != "encoder" and _has_decoder(config.init)
    network = build_network(config.encoder, store.num_channels, decoder=decoder)
    check_patch_size(network, config.data.patch_size)
    notes: list[str] = []
    if config.init != SCRATCH:
        part: Transfer = "all" if decoder else "encoder"
        loaded = load_weights(network, Path(config.init), part, split.held_out, store)
        notes = [f"  {note}" for note in loaded.notes]
    if config.dense:
        DenseEncoder.check(network, config.voxel_features)
    return store, split, network, notes


def _has_decoder(init: str) -> bool:
    """Whether a pretraining trained a decoder."""
    return init != SCRATCH and bool(read_sidecar(weights_path(Path(init))).get("decoder"))


def _of_task(config: EvaluateConfig) -> bool:
    """Whether a probe needs the task."""
    return any(probe is not None for probe in (config.linear, config.knn, config.crop_retrieval))


def _refuse_incomplete(config: EvaluateConfig) -> None:
    """ConfigError without a probe, or without the task of a probe."""
    if not (_of_task(config) or config.retrieval or config.landmarks or config.dense):
        raise ConfigError(
            "no probe is configured: set linear, knn, retrieval, crop_retrieval, landmarks, voxel_probe, "
            "label_propagation or voxel_matching, as in `retrieval: {same: patient}`"
        )
    if config.task is None and _of_task(config):
        raise ConfigError(
            "linear, knn and crop_retrieval need a task with classes, as in `task: {classification: "
            "{target: sex}}`"
        )


def _check_probes(config: EvaluateConfig, store: Store, split: Split) -> None:
    """ConfigError, DataError if the probes do not fit the task or the store."""
    if config.task is not None:
        task = _task(config.task, store)
        if config.crop_retrieval is not None and not isinstance(task, CropClassification):
            raise ConfigError(
                "crop_retrieval",
                None,
                f"scans of {config.task.name} have no single class for retrieval",
                "use linear or knn",
            )
    table = store.collection.table
    if config.retrieval is not None:
        config.retrieval.queries(table.iloc[_scans_of_sides(config, store, split)[1]])
    if config.crop_retrieval is not None:  # classes of crops are known after drawing them
        config.crop_retrieval.check_columns(table.assign(**{"class": ""}))
    context = _dense_context(config, store, split, _no_features)
    for probe in config.dense.values():
        probe.check(context)


def _dense_context(
    config: EvaluateConfig, store: Store, split: Split, describe: Callable[[int], DescribedVoxels]
) -> DenseContext:
    return DenseContext(store, config.data, split, describe, config.num_labelled, config.seed)


def _no_features(scan: int) -> DescribedVoxels:
    raise AssertionError("a check of a configuration describes no scan")


def _task(choice: Choice, store: Store) -> Probed:
    task = task_of(choice)
    if not isinstance(task, Probed):
        raise ConfigError(
            "task", Word(choice.name), "has no classes of crops for a probe", "use fine-tuning instead"
        )
    task.check(store)
    return task


class _Frozen:
    """A frozen encoder with a store of scans."""

    def __init__(self, network: Network, store: Store, device: torch.device, dtype: torch.dtype | None):
        self.network, self.store, self.device, self.dtype = network, store, device, dtype

    def features(self, examples: Sequence[Example]) -> np.ndarray:
        """``Float64[N, F]``: pooled features, averaged over the crops of each example.

        DataError if some are not finite.
        """
        return finite(
            mean_outputs(
                lambda crops: self.network.encoder(crops).pooled,
                self.store,
                examples,
                self.device,
                self.dtype,
            )
        )


@plain_dataclass
class _Results:
    """The metrics and result rows of all probes."""

    metrics: dict[str, Interval] = field(default_factory=dict)
    cases: list[dict[str, Any]] = field(default_factory=list)

    def add(self, probe: str, found: tuple[dict[str, Interval], list[dict[str, Any]]]) -> None:
        """Add those of one probe, with its name."""
        metrics, rows = found
        self.metrics |= {f"{probe}/{name}": value for name, value in metrics.items()}
        self.cases += [{"probe": probe, **row} for row in rows]


def measure(config: EvaluateConfig, frozen: _Frozen, split: Split) -> tuple[Evaluation, dict[str, list[str]]]:
    """Run all configured probes.

    Returns their results as one evaluation, and the labelled and test patients.
    """
    store, results = frozen.store, _Results()
    sides: dict[str, list[str]] = {"labelled": [], "test": list(split.test)}
    few: dict[str, int] = {}
    if config.task is not None and _of_task(config):
        sides, few = _measure_task(config, config.task, frozen, split, results)
    if config.retrieval is not None:
        results.add("retrieval", _retrieve(config, frozen, split, config.retrieval))
    if config.landmarks is not None:
        scans = _scans_of_sides(config, store, split)
        found = config.landmarks.measure(frozen.features, store, scans, config.data.patch_size, config.seed)
        results.add("landmarks", found)
    if config.dense:
        encoder = DenseEncoder(
            frozen.network, store, config.voxel_features, config.data.patch_size, frozen.device, frozen.dtype
        )
        dense = measure_dense(config.dense, _dense_context(config, store, split, encoder.scan))
        results.metrics |= dense.metrics
        results.cases += dense.rows
        sides = {side: sorted({*sides[side], *getattr(dense, side)}) for side in sides}
    return Evaluation(results.metrics, results.cases, {}, few), sides


def _measure_task(
    config: EvaluateConfig, choice: Choice, frozen: _Frozen, split: Split, results: _Results
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Add the results of the probes of a task.

    Returns its labelled and test patients, and the classes of few labelled patients.
    """
    store, task = frozen.store, _task(choice, frozen.store)
    scans, labelled = labelled_scans(
        store, config.data, task, split, choice.name, config.num_labelled, config.seed
    )
    tested = scans_to_test(store, config.data, task, split, choice.name)
    say(
        f"{choice.name}: {len(scans.rows)} scans of {len(labelled)} labelled patients, tested on "
        f"{len(tested.rows)} scans"
    )
    train, test = (
        task.examples(store, [int(row) for row in side.rows], config.data.patch_size)
        for side in (scans, tested)
    )
    patients = store.collection.table["patient"].astype(str).to_numpy()
    known = Labelled(frozen.features(train), targets_of(train), tuple(patients[e.scan] for e in train))
    features = frozen.features(test)
    few = few_training_cases(task, store, [int(row) for row in scans.rows])
    probes: dict[str, Probe | None] = {"linear": config.linear, "knn": config.knn}
    for name, probe in probes.items():
        if probe is not None:
            results.add(name, task.probe_metrics(probe, known, features, test, store, config.seed))
    if config.crop_retrieval is not None and isinstance(task, CropClassification):
        names = task.class_names(store)
        crops = store.collection.table.iloc[[e.scan for e in test]]
        crops = crops.assign(**{"class": [names[target] for target in targets_of(test)]})
        found = config.crop_retrieval.measure(known.features, features, crops, config.seed)
        results.add("crop_retrieval", found)
    return {"labelled": list(labelled), "test": sorted(set(patients[tested.rows].tolist()))}, few


def _scans_of_sides(config: EvaluateConfig, store: Store, split: Split) -> tuple[list[int], list[int]]:
    """Training and test scans. DataError if there is no test scan."""
    train = [int(row) for row in pretraining_scans(store, config.data).rows]
    on_test_side = store.collection.table["patient"].isin(split.test)
    if config.data.modalities is not None:
        on_test_side &= store.collection.table["modality"].isin(config.data.modalities)
    test = [int(row) for row in np.flatnonzero(on_test_side)]
    if not test:
        raise DataError(
            store.root, "no test scan", "prepare with a larger test_fraction, or set other modalities"
        )
    return train, test


def _retrieve(
    config: EvaluateConfig, frozen: _Frozen, split: Split, probe: Retrieval
) -> tuple[dict[str, Interval], list[dict[str, Any]]]:
    """Retrieval among whole test scans, with features averaged over the crops that cover each scan."""
    store, size = frozen.store, config.data.patch_size
    train, test = _scans_of_sides(config, store, split)
    say(f"retrieval among {len(test)} test scans")
    known, tested = (frozen.features(whole_scans(store, side, size)) for side in (train, test))
    return probe.measure(known, tested, store.collection.table.iloc[test], config.seed)
