"""A linear probe on labels of training patients, evaluated periodically during pretraining."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from medcl3d.config.choices import choice_in_list
from medcl3d.config.field_types import STRICT, Choice, PositiveInt
from medcl3d.core.errors import ConfigError, DataError, Word
from medcl3d.downstream.crop_dataset import Example, mean_outputs, targets_of
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


class Asked:
    """The crops of an online probe, the same at every evaluation."""

    def __init__(self, probe: OnlineProbe, store: Store, data: DataConfig, log_every: int):
        """ConfigError, DataError if the probe cannot be evaluated."""
        if probe.every % log_every:
            raise ConfigError(
                "probe.every",
                probe.every,
                f"is not a multiple of train.log_every = {log_every}",
                "use a multiple, since the probe is logged with the other metrics",
                colon=False,
            )
        self.store, self.every, self.task = store, probe.every, _task(probe.task)
        scans = with_target(pretraining_scans(store, data), self.task, store, "training", probe.task.name)
        patient = store.collection.table["patient"].astype(str).to_numpy()
        names = sorted(set(patient[scans.rows].tolist()))
        chosen = np.random.default_rng(0).permutation(names)[: probe.patients]
        if len(chosen) < 4:
            raise DataError(
                "probe",
                f"{len(chosen)} training patients have labels for {probe.task.name}",
                "at least four are needed",
                field="probe",
            )
        self.patient = patient
        self.train, self.test = (self._of(scans.rows, half, data) for half in (chosen[::2], chosen[1::2]))
        self.names = self.task.class_names(store)
        if len({example.target for example in self.train}) < 2:
            raise DataError(
                "probe",
                f"the patients that train it have one class of {probe.task.name}",
                "raise probe.patients",
                field="probe",
            )

    def _of(self, rows: np.ndarray, patients: np.ndarray, data: DataConfig) -> list[Example]:
        return self.task.examples(
            self.store, [int(row) for row in rows if self.patient[row] in patients], data.patch_size
        )

    def answer(self, network: Network, device: torch.device, dtype: torch.dtype | None) -> dict[str, float]:
        """Balanced accuracy of the current frozen features; the network is in training mode afterwards."""
        network.eval()
        train, test = (
            mean_outputs(lambda crops: network.encoder(crops).pooled, self.store, side, device, dtype)
            for side in (self.train, self.test)
        )
        network.train()
        truth = targets_of(self.test)
        known = Labelled(
            train,
            targets_of(self.train),
            tuple(self.patient[example.scan] for example in self.train),
        )
        return {
            METRIC: balanced_accuracy(LinearProbe().probabilities(known, test, len(self.names), 0), truth)
        }


def _task(choice: Choice) -> CropClassification:
    task = task_of(choice)
    if not isinstance(task, CropClassification):
        raise ConfigError(
            "probe.task", Word(choice.name), "has no classes of crops for a probe", "use a task with classes"
        )
    return task
