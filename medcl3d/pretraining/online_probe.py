"""A linear probe on labels of training patients, evaluated periodically during pretraining."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from medcl3d.config.choices import choice_in_list
from medcl3d.config.field_types import STRICT, PositiveInt
from medcl3d.core.errors import ConfigError, DataError, Word
from medcl3d.distributed.collectives import buffers_of_rank_zero, rank
from medcl3d.downstream.crop_dataset import mean_outputs, targets_of
from medcl3d.downstream.label_selection import with_target
from medcl3d.downstream.probes import Labelled, LinearProbe
from medcl3d.downstream.tasks import TASKS, task_of
from medcl3d.downstream.tasks.classification import CropClassification
from medcl3d.encoders.network import Network
from medcl3d.evaluation.metrics.classification import balanced_accuracy
from medcl3d.store.scan_selection import DataConfig, pretraining_scans
from medcl3d.store.store import Store

METRIC = "probe/balanced_accuracy"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OnlineProbe:
    """Configuration of a probe on labels of training patients; it does not affect training.

    task      a task with classes, such as `structure_at_centre` or `classification`
    every     steps between evaluations, a multiple of train.log_every
    patients  number of patients: one half trains the probe, the other tests it
    """

    task: choice_in_list(TASKS)  # type: ignore[valid-type]
    every: PositiveInt = 100
    patients: Annotated[int, Field(ge=4)] = 20


class ProbedCrops:
    """The crops of an online probe, the same at every evaluation."""

    def __init__(self, probe: OnlineProbe, store: Store, data: DataConfig, log_every: int):
        """ConfigError, DataError if the probe cannot be evaluated."""
        name, task = probe.task.name, task_of(probe.task)
        if probe.every % log_every:
            problem = f"is not a multiple of train.log_every = {log_every}"
            remedy = "use a multiple, since the probe is logged with the other metrics"
            raise ConfigError("probe.every", probe.every, problem, remedy, colon=False)
        if not isinstance(task, CropClassification):
            problem, remedy = "has no classes of crops for a probe", "use a task with classes"
            raise ConfigError("probe.task", Word(name), problem, remedy)
        self.store, self.every = store, probe.every
        rows = with_target(pretraining_scans(store, data), task, store, "training", name).rows
        self.patient = store.collection.table["patient"].astype(str).to_numpy()
        chosen = np.random.default_rng(0).permutation(sorted(set(self.patient[rows].tolist())))
        chosen = chosen[: probe.patients]
        if len(chosen) < 4:
            problem = f"{len(chosen)} training patients have labels for {name}"
            raise DataError("probe", problem, "at least four are needed", field="probe")
        self.num_classes = len(task.class_names(store))
        self.train, self.test = (
            task.examples(store, [int(row) for row in rows if self.patient[row] in half], data.patch_size)
            for half in (chosen[::2], chosen[1::2])
        )
        if len({example.target for example in self.train}) < 2:
            problem = f"the patients that train it have one class of {name}"
            raise DataError("probe", problem, "raise probe.patients", field="probe")

    def measure(self, network: Network, device: torch.device, dtype: torch.dtype | None) -> dict[str, float]:
        """Balanced accuracy of the current frozen features; the network is in training mode afterwards.

        All ranks call it and compute features of a part of the crops; the others than rank 0 return nothing.
        """
        buffers_of_rank_zero(network)
        network.eval()
        train, test = (
            mean_outputs(lambda crops: network.encoder(crops).pooled, self.store, side, device, dtype, True)
            for side in (self.train, self.test)
        )
        network.train()
        if rank() != 0:
            return {}
        patients = tuple(self.patient[example.scan] for example in self.train)
        known = Labelled(train, targets_of(self.train), patients)
        probabilities = LinearProbe().probabilities(known, test, self.num_classes, 0)
        return {METRIC: balanced_accuracy(probabilities, targets_of(self.test))}
