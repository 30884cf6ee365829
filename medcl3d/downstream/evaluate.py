"""`medcl3d evaluate`: what a frozen encoder knows, without training it further."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic.dataclasses import dataclass

from medcl3d.config import STRICT, choice_of, load, part_of, plain
from medcl3d.data.atomic import write_json
from medcl3d.data.fingerprints import fingerprints
from medcl3d.data.in_use import DataConfig, pretraining_scans, split_of
from medcl3d.data.room import refuse_unwritable
from medcl3d.data.splits import Measured, Split
from medcl3d.data.store import Store
from medcl3d.downstream import TASKS, Evaluation
from medcl3d.downstream.classification import CropClassification
from medcl3d.downstream.examples import Example, answers, covering_crops
from medcl3d.downstream.few_cases import few_training_cases, few_words
from medcl3d.downstream.finetune import SCRATCH, metric_lines, results_of
from medcl3d.downstream.labelled import labelled_scans, scans_to_test
from medcl3d.downstream.landmarks import Landmarks
from medcl3d.downstream.probes import Labelled, LinearProbe, NearestNeighbours, Probed, Retrieval, finite
from medcl3d.downstream.transfer import load_weights
from medcl3d.encoders import ENCODERS
from medcl3d.encoders.network import Network, build_network, check_patch_size
from medcl3d.errors import ConfigError, DataError
from medcl3d.evaluation.statistics import Interval
from medcl3d.registry import Choice, Count, Seed
from medcl3d.training.distributed import process_group, say, world_size
from medcl3d.training.logs import run_folder
from medcl3d.training.precision import Precision, autocast_dtype, computes_in
from medcl3d.training.seeding import seed_weights


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluateConfig:
    """An evaluation of a frozen encoder: which scans, which encoder, what is asked.

    init          scratch (an untrained encoder: the control), a pretraining's run folder, or its encoder.safetensors
    task          with classes or findings, whose examples linear and knn learn from the training side and answer on the test side
    num_labelled  training patients whose labels are used (default: all)
    linear, knn, retrieval    the probes; one at least, null for none
    crop_retrieval            retrieval among the task's test examples, as `{same: class, differ: patient}`
    landmarks                 places matched between test patients, in scans with label maps
    measured_on   the test patients, or those of validation, while choices are still made
    seed          of an untrained encoder, the draw of labelled patients, the folds, the bootstrap
    """

    data: DataConfig
    encoder: choice_of(ENCODERS)  # type: ignore[valid-type]
    out_dir: Path
    init: str = SCRATCH
    task: part_of(TASKS) | None = None  # type: ignore[valid-type]
    num_labelled: Count | None = None
    linear: LinearProbe | None = None
    knn: NearestNeighbours | None = None
    retrieval: Retrieval | None = None
    crop_retrieval: Retrieval | None = None
    landmarks: Landmarks | None = None
    precision: Precision = "auto"
    measured_on: Measured = "test"
    seed: Seed = 0


def evaluate(config_path: Path, overrides: Sequence[str] = (), check: bool = False) -> Path:
    """Measure a frozen encoder; the same command again does nothing once it is done. Returns the run folder."""
    config = load(config_path, overrides, EvaluateConfig)
    with process_group() as device:
        if world_size() > 1:
            raise ConfigError("evaluate runs in one process; start it without torchrun")
        store, split, network, notes = assemble(config)
        say("\n".join([f"{config.encoder.name}, frozen, {'untrained' if config.init == SCRATCH else f'from {config.init}'}", *notes]))
        if check:
            refuse_unwritable(config.out_dir, "out_dir")
            return config.out_dir
        provenance = {**fingerprints(store), "kind": "evaluate", "precision": computes_in(config.precision, device)}
        with run_folder(config.out_dir, plain(config), provenance, model=EvaluateConfig) as run:
            if run.finished:
                say(f"{config.out_dir}: this evaluation is done; remove the folder to do it again")
                return config.out_dir
            run.status("running", 0)
            frozen = _Frozen(network.eval().to(device), store, device, autocast_dtype(config.precision, device))
            found, sides = measure(config, frozen, split)
            write_json(run.path / "results.json", results_of(found, sides, plain(config)))
            say(metric_lines(found.metrics))
            for line in few_words(found.few, len(sides["labelled"])):
                say(f"  note: {line}")
            run.status("done", 0)
    return config.out_dir


def assemble(config: EvaluateConfig) -> tuple[Store, Split, Network, list[str]]:
    """Open the store and put the weights into the encoder. ConfigError, DataError where something does not fit."""
    of_task = config.linear or config.knn or config.crop_retrieval
    if not (of_task or config.retrieval or config.landmarks):
        raise ConfigError("nothing is asked: set linear, knn, retrieval, crop_retrieval or landmarks, as in `retrieval: {same: patient}`")
    if config.task is None and of_task:
        raise ConfigError("linear, knn and crop_retrieval need a task with classes, as in `task: {classification: {target: sex}}`")
    store = Store.open(config.data.root)
    split = split_of(store, config.data).measured_on(config.measured_on)
    if config.task is not None:
        task = _task(config.task, store)
        if config.crop_retrieval is not None and not isinstance(task, CropClassification):
            raise ConfigError(f"crop_retrieval: a scan of {config.task.name} has no single class to be retrieved by; ask linear or knn")
    table = store.collection.table
    if config.retrieval is not None:
        config.retrieval.queries(table.iloc[_scans_of_sides(config, store, split)[1]])
    if config.crop_retrieval is not None:
        config.crop_retrieval.check_columns(table.assign(**{"class": ""}))  # of crops, known once they are drawn
    seed_weights(config.seed)
    network = build_network(config.encoder, store.num_channels, decoder=False)
    check_patch_size(network, config.data.patch_size)
    notes: list[str] = []
    if config.init != SCRATCH:
        notes = [f"  {note}" for note in load_weights(network, Path(config.init), "encoder", split.held_out, store).notes]
    return store, split, network, notes


def _task(choice: Choice, store: Store) -> Probed:
    task = TASKS.build(choice)
    if not isinstance(task, Probed):
        raise ConfigError(f"task = {choice.name}: it has no classes of crops for a probe to learn; fine-tune it instead")
    task.check(store)
    return task


class _Frozen:
    """A frozen encoder that looks at scans of a store."""

    def __init__(self, network: Network, store: Store, device: torch.device, dtype: torch.dtype | None):
        self.network, self.store, self.device, self.dtype = network, store, device, dtype

    def features(self, examples: Sequence[Example]) -> np.ndarray:
        """``Float64[N, F]``: pooled features, averaged over each example's crops. DataError where some are no numbers."""
        return finite(answers(lambda crops: self.network(crops).pooled, self.store, examples, self.device, self.dtype))


def measure(config: EvaluateConfig, frozen: _Frozen, split: Split) -> tuple[Evaluation, dict[str, list[str]]]:
    """All that is asked, as one evaluation; and the patients of each side."""
    store = frozen.store
    metrics: dict[str, Interval] = {}
    cases: list[dict[str, Any]] = []
    sides: dict[str, list[str]] = {"labelled": [], "test": list(split.test)}
    few: dict[str, int] = {}
    if config.task is not None and (config.linear or config.knn or config.crop_retrieval):
        task = _task(config.task, store)
        scans, labelled = labelled_scans(store, config.data, task, split, config.task.name, config.num_labelled, config.seed)
        asked = scans_to_test(store, config.data, task, split, config.task.name)
        say(f"{config.task.name}: {len(scans.rows)} scans of {len(labelled)} labelled patients, asked of {len(asked.rows)} test scans")
        train, test = (task.examples(store, [int(row) for row in side.rows], config.data.patch_size) for side in (scans, asked))
        patients = store.collection.table["patient"].astype(str).to_numpy()
        known = Labelled(frozen.features(train), task.labels(store, train), tuple(patients[e.scan] for e in train))
        features = frozen.features(test)
        few = few_training_cases(task, store, [int(row) for row in scans.rows])
        for name, probe in (("linear", config.linear), ("knn", config.knn)):
            if probe is not None:
                found, rows = task.asked(probe, known, features, test, store, config.seed)
                metrics |= {f"{name}/{key}": value for key, value in found.items()}
                cases += [{"probe": name, **row} for row in rows]
        if config.crop_retrieval is not None and isinstance(task, CropClassification):
            names = task.class_names(store)
            crops = store.collection.table.iloc[[e.scan for e in test]].assign(**{"class": [names[e.target] for e in test]})
            found, rows = config.crop_retrieval.measure(known.features, features, crops, config.seed)
            metrics |= {f"crop_retrieval/{key}": value for key, value in found.items()}
            cases += [{"probe": "crop_retrieval", **row} for row in rows]
        sides = {"labelled": list(labelled), "test": sorted(set(patients[asked.rows].tolist()))}
    if config.retrieval is not None:
        found, rows = _retrieve(config, frozen, split, config.retrieval)
        metrics |= {f"retrieval/{key}": value for key, value in found.items()}
        cases += [{"probe": "retrieval", **row} for row in rows]
    if config.landmarks is not None:
        found, rows = config.landmarks.measure(
            frozen.features, store, _scans_of_sides(config, store, split), config.data.patch_size, config.seed
        )
        metrics |= {f"landmarks/{key}": value for key, value in found.items()}
        cases += [{"probe": "landmarks", **row} for row in rows]
    return Evaluation(metrics, cases, {}, few), sides


def _scans_of_sides(config: EvaluateConfig, store: Store, split: Split) -> tuple[list[int], list[int]]:
    """Scans of the training and of the test side. DataError where none is to be tested."""
    train = [int(row) for row in pretraining_scans(store, config.data).rows]
    on_test_side = store.collection.table["patient"].isin(split.test)
    if config.data.modalities is not None:
        on_test_side &= store.collection.table["modality"].isin(config.data.modalities)
    test = [int(row) for row in np.flatnonzero(on_test_side)]
    if not test:
        raise DataError(f"{store.root}: there is no test scan to ask about; prepare with a larger test_fraction, or name other modalities")
    return train, test


def _retrieve(config: EvaluateConfig, frozen: _Frozen, split: Split, probe: Retrieval) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Whole test scans, each as the mean over the crops that cover it."""
    store, size = frozen.store, config.data.patch_size
    train, test = _scans_of_sides(config, store, split)
    say(f"retrieval among {len(test)} test scans")
    known, asked = (frozen.features([Example(int(i), covering_crops(store, int(i), size), 0) for i in side]) for side in (train, test))
    return probe.measure(known, asked, store.collection.table.iloc[test], config.seed)
