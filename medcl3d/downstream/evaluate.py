"""`medcl3d evaluate`: evaluate a frozen encoder with probes, without training it further."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass as plain_dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic.dataclasses import dataclass

from medcl3d.config.choices import choice_in_list, choice_of
from medcl3d.config.field_types import STRICT, PositiveInt, Seed
from medcl3d.config.loading import load
from medcl3d.core.errors import ConfigError, DataError, Word
from medcl3d.distributed.collectives import process_group, require_one_process, say
from medcl3d.distributed.precision import Precision, autocast_dtype
from medcl3d.distributed.seeding import seed_weights
from medcl3d.downstream.crop_dataset import Example, mean_outputs, targets_of
from medcl3d.downstream.dense.context import DenseContext, DenseProbe, measure_dense
from medcl3d.downstream.dense.controls import DescribedVoxels
from medcl3d.downstream.dense.label_propagation import LabelPropagation
from medcl3d.downstream.dense.voxel_features import DenseEncoder, VoxelFeatures
from medcl3d.downstream.dense.voxel_matching import VoxelMatching
from medcl3d.downstream.dense.voxel_probe import VoxelProbe
from medcl3d.downstream.few_cases import few_training_cases
from medcl3d.downstream.label_selection import labelled_scans, scans_to_test
from medcl3d.downstream.landmarks import Landmarks
from medcl3d.downstream.probes import (
    Labelled,
    LinearProbe,
    NearestNeighbours,
    Probe,
    Probed,
    Retrieval,
    ScanRetrieval,
    finite,
)
from medcl3d.downstream.results import finish, record_init
from medcl3d.downstream.run_weights import SCRATCH, Init, after_step, read_sidecar, source_of, weights_path
from medcl3d.downstream.targets import Measurement
from medcl3d.downstream.task import Evaluation
from medcl3d.downstream.tasks import TASKS, task_of
from medcl3d.downstream.tasks.classification import CropClassification
from medcl3d.downstream.transfer import Transfer, Transferred, load_weights, start_of
from medcl3d.downstream.unlike_pretraining import unlike_pretraining
from medcl3d.encoders import ENCODERS
from medcl3d.encoders.network import Network, build_network, check_patch_size
from medcl3d.io.disk_space import require_writable
from medcl3d.layouts.foreign import ForeignWeights
from medcl3d.store.scan_selection import DataConfig, pretraining_scans, split_of
from medcl3d.store.splits import Measured, Split
from medcl3d.store.store import Store
from medcl3d.training.run_folder import run_of


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluateConfig:
    """Configuration of an evaluation of a frozen encoder: scans, encoder, probes.

    data          the scans and the patch size
    encoder       the network, as in the pretraining
    out_dir       the run folder
    init          scratch (an untrained encoder: the control), the run folder of a pretraining, RUN@STEP
                  (after a step of `train.keep_steps`), or its encoder.safetensors; or weights of another
                  project, as `{weights: FILE, layout: NAME, saw: unknown}`
    step          the same step as its own field, so that a comparison can vary it; no effect on scratch
    task          a task with classes or findings; linear and knn are trained on its training examples
                  and evaluated on its test examples
    num_labelled  number of training patients whose labels are used (default: all)
    linear        linear probe of the task, on frozen features (default: none)
    knn           nearest neighbours of the task, on frozen features (default: none)
    retrieval     retrieval of test scans of the same group (default: none)
    crop_retrieval   retrieval among test examples of the task, as `{same: class, differ: patient}`
    landmarks     matching of corresponding points between test patients, in scans with label maps
    voxel_probe, label_propagation, voxel_matching   dense probes, of single voxels of whole scans
    voxel_features   how dense probes compute the features of a voxel
    precision     auto: bfloat16 autocast if the device supports it, else float32
    measured_on   test patients, or validation patients while choices are still made
    seed          seed of an untrained encoder, the draw of labelled patients, the folds, the bootstrap
    """

    data: DataConfig
    encoder: choice_of(ENCODERS)  # type: ignore[valid-type]
    out_dir: Path
    init: Init = SCRATCH
    step: PositiveInt | None = None
    task: choice_in_list(TASKS) | None = None  # type: ignore[valid-type]
    num_labelled: PositiveInt | None = None
    linear: LinearProbe | None = None
    knn: NearestNeighbours | None = None
    retrieval: ScanRetrieval | None = None
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
    def source(self) -> Init:
        """`init`, with the step."""
        return after_step(self.init, self.step)

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
    require_one_process("evaluate")
    with process_group() as device:
        parts = assemble(config)
        start = start_of(parts.network, parts.transferred)
        untrained = "untrained" if start is None else "with the weights of the module from Python"
        origin = untrained if config.init == SCRATCH else f"from {config.source}"
        notes = [f"  {note}" for note in parts.notes]
        say("\n".join([f"{config.encoder.name}, frozen, {origin}", *notes]))
        if check:
            require_writable(config.out_dir, "out_dir")
            return config.out_dir
        precision = config.precision
        with run_of(config, config.out_dir, parts.store, "evaluate", precision, device, start) as run:
            if run is not None:
                run.status("running", 0)
                record_init(run, parts.transferred, parts.store)
                finish(run, *measure(parts, device), config, 0)
    return config.out_dir


@plain_dataclass(frozen=True)
class FrozenEvaluation:
    """All parts of an evaluation, built from its configuration; transferred: the loaded weights."""

    config: EvaluateConfig
    store: Store
    split: Split
    task: Probed | None
    network: Network
    transferred: Transferred | None = None

    @property
    def notes(self) -> list[str]:
        """Lines on the loaded weights."""
        if self.transferred is None:
            return []
        warnings = unlike_pretraining(self.store, self.transferred.sidecar)
        return [*self.transferred.notes, *(f"warning: {text}" for text in warnings)]


def assemble(config: EvaluateConfig) -> FrozenEvaluation:
    """Open the store and load the weights of the encoder.

    ConfigError, DataError if parts are incompatible.
    """
    _refuse_incomplete(config)
    store = Store.open(config.data.root)
    split = split_of(store, config.data).measured_on(config.measured_on)
    task = _checked_task(config, store, split)
    seed_weights(config.seed)
    decoder = bool(config.dense) and config.voxel_features.maps != "encoder" and _has_decoder(config.source)
    network = build_network(config.encoder, store.num_channels, decoder=decoder)
    check_patch_size(network, config.data.patch_size)
    if config.retrieval is not None and config.retrieval.central_patch is not None:
        check_patch_size(network, config.retrieval.central_patch, "retrieval.central_patch")
    loaded = None
    if config.init != SCRATCH:
        part: Transfer = "all" if decoder else "encoder"
        loaded = load_weights(network, source_of(config.source), part, split.held_out, store)
    if config.dense:
        DenseEncoder.check(network, config.voxel_features)
    return FrozenEvaluation(config, store, split, task, network, loaded)


def _has_decoder(init: Init) -> bool:
    """Whether a pretraining trained a decoder."""
    if init == SCRATCH or isinstance(init, ForeignWeights):
        return False
    return bool(read_sidecar(weights_path(Path(init))).get("decoder"))


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


def _checked_task(config: EvaluateConfig, store: Store, split: Split) -> Probed | None:
    """The task of the probes. ConfigError, DataError if probes do not fit the task or the store."""
    task = None
    if config.task is not None:
        built, name = task_of(config.task), config.task.name
        if not isinstance(built, Probed):
            raise ConfigError(
                "task", Word(name), "has no classes of crops for a probe", "use fine-tuning instead"
            )
        task = built
        task.check(store)
        if config.crop_retrieval is not None and not isinstance(task, CropClassification):
            problem = f"scans of {name} have no single class for retrieval"
            raise ConfigError("crop_retrieval", None, problem, "use linear or knn")
    table = store.collection.table
    if config.retrieval is not None:
        train, test = _scans_of_sides(config, store, split)
        config.retrieval.queries(table.iloc[test])
        config.retrieval.examples(store, [*train, *test], config.data.patch_size)
    if config.crop_retrieval is not None:  # classes of crops are known after drawing them
        config.crop_retrieval.check_columns(table.assign(**{"class": ""}))
    context = DenseContext(store, config.data, split, _no_features, config.num_labelled, config.seed)
    for probe in config.dense.values():
        probe.check(context)
    return task


def _no_features(scan: int) -> DescribedVoxels:
    raise AssertionError("a check of a configuration describes no scan")


def measure(parts: FrozenEvaluation, device: torch.device) -> tuple[Evaluation, dict[str, list[str]]]:
    """Run all configured probes.

    Returns their results as one evaluation, and the labelled and test patients.
    """
    config, store, split = parts.config, parts.store, parts.split
    network, size = parts.network.eval().to(device), config.data.patch_size
    dtype = autocast_dtype(config.precision, device)

    def features(examples: Sequence[Example]) -> np.ndarray:
        encode = network.encoder
        return finite(mean_outputs(lambda crops: encode(crops).pooled, store, examples, device, dtype))

    found: list[tuple[str, Measurement]] = []
    sides: dict[str, list[str]] = {"labelled": [], "test": list(split.test)}
    few: dict[str, int] = {}
    if parts.task is not None and config.task is not None and _of_task(config):
        found, sides, few = _measure_task(parts, parts.task, config.task.name, features)
    if config.retrieval is not None:
        train, test = _scans_of_sides(config, store, split)
        table = store.collection.table.iloc[test]
        count = int(config.retrieval.known(table).sum())
        unknown = f"; {len(test) - count} without a value of same or differ are left out"
        say(f"retrieval among {count} test scans{unknown if count < len(test) else ''}")
        known, tested = (features(config.retrieval.examples(store, side, size)) for side in (train, test))
        found.append(("retrieval", config.retrieval.measure(known, tested, table, config.seed)))
    if config.landmarks is not None:
        scans = _scans_of_sides(config, store, split)
        found.append(("landmarks", config.landmarks.measure(features, store, scans, size, config.seed)))
    metrics = {f"{probe}/{name}": value for probe, (of, _) in found for name, value in of.items()}
    cases = [{"probe": probe, **row} for probe, (_, rows) in found for row in rows]
    if config.dense:
        encoder = DenseEncoder(network, store, config.voxel_features, size, device, dtype)
        context = DenseContext(store, config.data, split, encoder.scan, config.num_labelled, config.seed)
        dense = measure_dense(config.dense, context)
        metrics |= dense.metrics
        cases += dense.rows
        sides = {side: sorted({*sides[side], *getattr(dense, side)}) for side in sides}
    return Evaluation(metrics, cases, {}, few), sides


def _measure_task(
    parts: FrozenEvaluation, task: Probed, name: str, features: Callable[[Sequence[Example]], np.ndarray]
) -> tuple[list[tuple[str, Measurement]], dict[str, list[str]], dict[str, int]]:
    """The results of the probes of a task by name, its labelled and test patients, and its rare classes."""
    config, store, split, data = parts.config, parts.store, parts.split, parts.config.data
    scans, labelled = labelled_scans(store, data, task, split, name, config.num_labelled, config.seed)
    tested = scans_to_test(store, data, task, split, name)
    say(
        f"{name}: {len(scans.rows)} scans of {len(labelled)} labelled patients, tested on "
        f"{len(tested.rows)} scans"
    )
    train, test = (
        task.examples(store, [int(row) for row in side.rows], data.patch_size) for side in (scans, tested)
    )
    table = store.collection.table
    patients = table["patient"].astype(str).to_numpy()
    known = Labelled(features(train), targets_of(train), tuple(patients[e.scan] for e in train))
    of_test = features(test)
    few = few_training_cases(task, store, [int(row) for row in scans.rows])
    probes: dict[str, Probe | None] = {"linear": config.linear, "knn": config.knn}
    found = [
        (probe_name, task.probe_metrics(probe, known, of_test, test, store, config.seed))
        for probe_name, probe in probes.items()
        if probe is not None
    ]
    if config.crop_retrieval is not None and isinstance(task, CropClassification):
        names = task.class_names(store)
        crops = table.iloc[[e.scan for e in test]]
        crops = crops.assign(**{"class": [names[target] for target in targets_of(test)]})
        of_crops = config.crop_retrieval.measure(known.features, of_test, crops, config.seed)
        found.append(("crop_retrieval", of_crops))
    return found, {"labelled": list(labelled), "test": sorted(set(patients[tested.rows].tolist()))}, few


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
