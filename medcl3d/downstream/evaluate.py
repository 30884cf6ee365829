"""`medcl3d evaluate`: evaluate a frozen encoder with probes, without training it further."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic.dataclasses import dataclass

from medcl3d.config.choices import choice_in_list, choice_of
from medcl3d.config.field_types import STRICT, Choice, PositiveInt, Seed
from medcl3d.config.loading import load
from medcl3d.config.plain import plain
from medcl3d.core.errors import ConfigError, DataError, Word
from medcl3d.distributed.collectives import process_group, say, world_size
from medcl3d.distributed.precision import Precision, autocast_dtype, precision_used
from medcl3d.distributed.seeding import seed_weights
from medcl3d.downstream.crop_dataset import Example, answers, covering_crops
from medcl3d.downstream.few_cases import few_case_notes, few_training_cases
from medcl3d.downstream.finetune import SCRATCH, metric_lines, results_of
from medcl3d.downstream.label_selection import labelled_scans, scans_to_test
from medcl3d.downstream.landmarks import Landmarks
from medcl3d.downstream.probes import Labelled, LinearProbe, NearestNeighbours, Probed, Retrieval, finite
from medcl3d.downstream.task import Evaluation
from medcl3d.downstream.tasks import TASKS
from medcl3d.downstream.tasks.classification import CropClassification
from medcl3d.downstream.transfer import load_weights
from medcl3d.encoders import ENCODERS
from medcl3d.encoders.network import Network, build_network, check_patch_size
from medcl3d.evaluation.statistics.intervals import Interval
from medcl3d.io.atomic import write_json
from medcl3d.io.disk_space import require_writable
from medcl3d.store.fingerprints import fingerprints
from medcl3d.store.scan_selection import DataConfig, pretraining_scans, split_of
from medcl3d.store.splits import Measured, Split
from medcl3d.store.store import Store
from medcl3d.training.run_folder import run_folder


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluateConfig:
    """Configuration of an evaluation of a frozen encoder: scans, encoder, probes.

    init          scratch (an untrained encoder: the control), the run folder of a pretraining, or its
                  encoder.safetensors
    task          a task with classes or findings; linear and knn are trained on its training examples
                  and evaluated on its test examples
    num_labelled  number of training patients whose labels are used (default: all)
    linear, knn, retrieval    the probes; at least one, null for none
    crop_retrieval            retrieval among test examples of the task, as `{same: class, differ: patient}`
    landmarks                 matching of corresponding points between test patients, in scans with label maps
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
    precision: Precision = "auto"
    measured_on: Measured = "test"
    seed: Seed = 0


def evaluate(config_path: Path, overrides: Sequence[str] = (), check: bool = False) -> Path:
    """Evaluate a frozen encoder and return the run folder. Does nothing if the evaluation is done."""
    config = load(config_path, overrides, EvaluateConfig)
    with process_group() as device:
        if world_size() > 1:
            raise ConfigError(problem="evaluate runs in one process", remedy="start it without torchrun")
        store, split, network, notes = assemble(config)
        say(
            "\n".join(
                [
                    f"{config.encoder.name}, frozen, "
                    f"{'untrained' if config.init == SCRATCH else f'from {config.init}'}",
                    *notes,
                ]
            )
        )
        if check:
            require_writable(config.out_dir, "out_dir")
            return config.out_dir
        provenance = {
            **fingerprints(store),
            "kind": "evaluate",
            "precision": precision_used(config.precision, device),
        }
        with run_folder(config.out_dir, plain(config), provenance, model=EvaluateConfig) as run:
            if run.finished:
                say(f"{config.out_dir}: this evaluation is done; remove the folder to repeat it")
                return config.out_dir
            run.status("running", 0)
            frozen = _Frozen(
                network.eval().to(device), store, device, autocast_dtype(config.precision, device)
            )
            found, sides = measure(config, frozen, split)
            write_json(run.path / "results.json", results_of(found, sides, plain(config)))
            say(metric_lines(found.metrics))
            for line in few_case_notes(found.few, len(sides["labelled"])):
                say(f"  note: {line}")
            run.status("done", 0)
    return config.out_dir


def assemble(config: EvaluateConfig) -> tuple[Store, Split, Network, list[str]]:
    """Open the store and load the weights of the encoder.

    ConfigError, DataError if parts are incompatible.
    """
    of_task = config.linear or config.knn or config.crop_retrieval
    if not (of_task or config.retrieval or config.landmarks):
        raise ConfigError(
            "no probe is configured: set linear, knn, retrieval, crop_retrieval or landmarks, as in "
            "`retrieval: {same: patient}`"
        )
    if config.task is None and of_task:
        raise ConfigError(
            "linear, knn and crop_retrieval need a task with classes, as in `task: {classification: "
            "{target: sex}}`"
        )
    store = Store.open(config.data.root)
    split = split_of(store, config.data).measured_on(config.measured_on)
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
    if config.crop_retrieval is not None:
        config.crop_retrieval.check_columns(
            table.assign(**{"class": ""})
        )  # classes of crops are known after drawing them
    seed_weights(config.seed)
    network = build_network(config.encoder, store.num_channels, decoder=False)
    check_patch_size(network, config.data.patch_size)
    notes: list[str] = []
    if config.init != SCRATCH:
        notes = [
            f"  {note}"
            for note in load_weights(network, Path(config.init), "encoder", split.held_out, store).notes
        ]
    return store, split, network, notes


def _task(choice: Choice, store: Store) -> Probed:
    task = TASKS.build(choice)
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
            answers(lambda crops: self.network(crops).pooled, self.store, examples, self.device, self.dtype)
        )


def measure(config: EvaluateConfig, frozen: _Frozen, split: Split) -> tuple[Evaluation, dict[str, list[str]]]:
    """Run all configured probes.

    Returns their results as one evaluation, and the labelled and test patients.
    """
    store = frozen.store
    metrics: dict[str, Interval] = {}
    cases: list[dict[str, Any]] = []
    sides: dict[str, list[str]] = {"labelled": [], "test": list(split.test)}
    few: dict[str, int] = {}
    if config.task is not None and (config.linear or config.knn or config.crop_retrieval):
        task = _task(config.task, store)
        scans, labelled = labelled_scans(
            store, config.data, task, split, config.task.name, config.num_labelled, config.seed
        )
        tested = scans_to_test(store, config.data, task, split, config.task.name)
        say(
            f"{config.task.name}: {len(scans.rows)} scans of {len(labelled)} labelled patients, tested on "
            f"{len(tested.rows)} scans"
        )
        train, test = (
            task.examples(store, [int(row) for row in side.rows], config.data.patch_size)
            for side in (scans, tested)
        )
        patients = store.collection.table["patient"].astype(str).to_numpy()
        known = Labelled(
            frozen.features(train), task.labels(store, train), tuple(patients[e.scan] for e in train)
        )
        features = frozen.features(test)
        few = few_training_cases(task, store, [int(row) for row in scans.rows])
        for name, probe in (("linear", config.linear), ("knn", config.knn)):
            if probe is not None:
                found, rows = task.probe_metrics(probe, known, features, test, store, config.seed)
                metrics |= {f"{name}/{key}": value for key, value in found.items()}
                cases += [{"probe": name, **row} for row in rows]
        if config.crop_retrieval is not None and isinstance(task, CropClassification):
            names = task.class_names(store)
            crops = store.collection.table.iloc[[e.scan for e in test]].assign(
                **{"class": [names[e.target] for e in test]}
            )
            found, rows = config.crop_retrieval.measure(known.features, features, crops, config.seed)
            metrics |= {f"crop_retrieval/{key}": value for key, value in found.items()}
            cases += [{"probe": "crop_retrieval", **row} for row in rows]
        sides = {"labelled": list(labelled), "test": sorted(set(patients[tested.rows].tolist()))}
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
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Retrieval among whole test scans, with features averaged over the crops that cover each scan."""
    store, size = frozen.store, config.data.patch_size
    train, test = _scans_of_sides(config, store, split)
    say(f"retrieval among {len(test)} test scans")
    known, tested = (
        frozen.features([Example(int(i), covering_crops(store, int(i), size), 0) for i in side])
        for side in (train, test)
    )
    return probe.measure(known, tested, store.collection.table.iloc[test], config.seed)
