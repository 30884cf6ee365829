"""A linear probe asked now and then while an encoder is pretrained: whether it learns what one wants it for."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from medcl3d.config import STRICT, part_of
from medcl3d.data.in_use import DataConfig, pretraining_scans
from medcl3d.data.store import Store
from medcl3d.downstream import TASKS
from medcl3d.downstream.classification import CropClassification
from medcl3d.downstream.examples import Example, answers
from medcl3d.downstream.labelled import with_target
from medcl3d.downstream.probes import Labelled, LinearProbe
from medcl3d.encoders.network import Network
from medcl3d.errors import ConfigError, DataError
from medcl3d.evaluation.classification import balanced_accuracy
from medcl3d.registry import Choice, Count

METRIC = "probe/balanced_accuracy"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OnlineProbe:
    """A probe of the training patients' labels; it leaves the training as it is.

    task      with classes, as `structure_at_centre` or `classification`
    every     steps between two answers, a multiple of train.log_every
    patients  whose crops are asked for: one half teaches, the other is asked
    """

    task: part_of(TASKS)  # type: ignore[valid-type]
    every: Count = 100
    patients: Annotated[int, Field(ge=4)] = 20


class Asked:
    """The crops of an online probe, the same at every step."""

    def __init__(self, probe: OnlineProbe, store: Store, data: DataConfig, log_every: int):
        """ConfigError, DataError where the probe cannot be asked."""
        if probe.every % log_every:
            raise ConfigError(
                f"probe.every = {probe.every} is no multiple of train.log_every = {log_every}; answers are logged with the rest"
            )
        self.store, self.every, self.task = store, probe.every, _task(probe.task)
        scans = with_target(pretraining_scans(store, data), self.task, store, "training", probe.task.name)
        patient = store.collection.table["patient"].astype(str).to_numpy()
        names = sorted(set(patient[scans.rows].tolist()))
        chosen = np.random.default_rng(0).permutation(names)[: probe.patients]
        if len(chosen) < 4:
            raise DataError(f"probe: {len(chosen)} training patients have labels for {probe.task.name}; four are the fewest")
        self.patient = patient
        self.teach, self.ask = (self._of(scans.rows, half, data) for half in (chosen[::2], chosen[1::2]))
        self.names = self.task.class_names(store)
        if len({example.target for example in self.teach}) < 2:
            raise DataError(f"probe: the patients that teach hold one class of {probe.task.name}; raise probe.patients")

    def _of(self, rows: np.ndarray, patients: np.ndarray, data: DataConfig) -> list[Example]:
        return self.task.examples(self.store, [int(row) for row in rows if self.patient[row] in patients], data.patch_size)

    def answer(self, network: Network, device: torch.device, dtype: torch.dtype | None) -> dict[str, float]:
        """Balanced accuracy of the frozen features as they are now; the network is in training mode again afterwards."""
        network.eval()
        teach, ask = (
            answers(lambda crops: network.encoder(crops).pooled, self.store, side, device, dtype) for side in (self.teach, self.ask)
        )
        network.train()
        truth = self.task.labels(self.store, self.ask)
        known = Labelled(teach, self.task.labels(self.store, self.teach), tuple(self.patient[example.scan] for example in self.teach))
        return {METRIC: balanced_accuracy(LinearProbe().probabilities(known, ask, len(self.names), 0), truth)}


def _task(choice: Choice) -> CropClassification:
    task = TASKS.build(choice)
    if not isinstance(task, CropClassification):
        raise ConfigError(f"probe.task = {choice.name}: it has no classes of crops for a probe to learn")
    return task
