"""Classification: one class per scan, evaluated by area under the ROC curve and accuracy on test patients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medcl3d.core.embeddings import Loss
from medcl3d.core.errors import ConfigError, inside
from medcl3d.distributed.collectives import all_mean
from medcl3d.downstream.crop_dataset import CropBatch, Example, targets_of
from medcl3d.downstream.crop_task import CropTask, ScanTask
from medcl3d.downstream.heads import Classifier
from medcl3d.downstream.probes import Labelled, Probe, check_classes
from medcl3d.downstream.targets import Measurement, balancing, case_rows, lacking, once_per_store, patients_of
from medcl3d.downstream.tasks import TASKS
from medcl3d.encoders.network import Network
from medcl3d.evaluation.metrics.classification import classification_metrics
from medcl3d.store.store import Store
from medcl3d.views import ViewRecipe

MAX_CLASSES = 100


class CropClassification(CropTask):
    """Common part of tasks with one class per crop; a task defines the crops and their classes."""

    @abstractmethod
    def class_names(self, store: Store) -> tuple[str, ...]:
        """The classes in the order of their indices."""

    @abstractmethod
    def classes_in(self, store: Store, scan: int) -> list[str]:
        """The classes in a labelled scan."""

    def check(self, store: Store) -> None:
        """ConfigError if the store lacks the classes."""
        self.class_names(store)

    def probe_metrics(
        self,
        probe: Probe,
        known: Labelled,
        features: np.ndarray,
        examples: Sequence[Example],
        store: Store,
        seed: int,
    ) -> Measurement:
        """Metrics of a probe on the test examples, and one row per example.

        DataError if its training examples have one class.
        """
        names = self.class_names(store)
        check_classes(known, names)
        return self.measure(probe.probabilities(known, features, len(names), seed), examples, store, seed)

    def model(self, network: Network, store: Store) -> Classifier:
        """The network with a linear head."""
        return Classifier(network, len(self.class_names(store)))

    def loss(self, model: nn.Module, batch: CropBatch, recipe: ViewRecipe) -> Loss:
        """Weighted cross-entropy of the augmented crops of one rank."""
        logits: Tensor = model(batch.augmented(recipe))
        with torch.autocast(logits.device.type, enabled=False):
            # Weights have mean 1 over the scans: dividing by their sum in a batch would let a batch of one
            # class ignore them.
            value = (batch.weights * F.cross_entropy(logits.float(), batch.targets, reduction="none")).mean()
        accuracy = (logits.argmax(1) == batch.targets).float().mean()
        return Loss(value, {"loss": all_mean(value.detach()), "training_accuracy": all_mean(accuracy)})

    def output(self, model: nn.Module, store: Store) -> Callable[[Tensor], Tensor]:
        """Class probabilities."""
        return lambda crops: model(crops).float().softmax(1)

    def measure(self, found: np.ndarray, examples: Sequence[Example], store: Store, seed: int) -> Measurement:
        """AUROC, balanced accuracy and accuracy of class probabilities, and one row per example."""
        names, targets = self.class_names(store), targets_of(examples)
        rows = case_rows(store.collection.table.iloc[[example.scan for example in examples]])
        cases = [
            {
                **row,
                "class": names[target],
                "predicted": names[int(shares.argmax())],
                "probability": round(float(shares[target]), 6),
            }
            for row, target, shares in zip(rows, targets.tolist(), found, strict=True)
        ]
        return classification_metrics(found, targets, patients_of(rows), seed), cases


@TASKS.register("classification")
@dataclass(frozen=True, kw_only=True)
class Classification(CropClassification, ScanTask):
    """Cross-entropy of a linear head on pooled features; the class of a scan is a column of the manifest.

    target         the column; scans with an empty value are used neither in training nor in testing
    class_weights  balanced: equal total weight per class; none: equal weight per scan

    Training uses one random crop per scan. The probabilities of a test scan are the mean over the fewest
    crops that cover it. Labelled patients are drawn in proportion to the classes.
    """

    target: str = "class"
    class_weights: Literal["balanced", "none"] = "balanced"

    @once_per_store
    @inside("task", "classification", "target")
    def _values(self, store: Store) -> np.ndarray:
        """The column as text, "" if empty.

        ConfigError if the manifest lacks the column, or its values are not classes.
        """
        table, where = store.collection.table, f"task.classification.target = {self.target!r}"
        if self.target not in table:
            raise ConfigError(problem=lacking(store, "such column"), place=where)
        values: np.ndarray = table[self.target].fillna("").astype(str).to_numpy()
        found = set(values) - {""}
        if not 2 <= len(found) <= MAX_CLASSES:
            examples = ", ".join(sorted(found)[:5])
            raise ConfigError(
                problem=f"the column has {len(found)} different values ({examples}), too "
                f"{('few' if len(found) < 2 else 'many')} for classes",
                remedy=f"use a column with 2 to {MAX_CLASSES}",
                place=where,
            )
        return values

    def class_names(self, store: Store) -> tuple[str, ...]:
        """The values of the column, sorted; as numbers if all are numbers."""
        names = sorted(set(self._values(store)) - {""})
        try:
            return tuple(sorted(names, key=float))
        except ValueError:
            return tuple(names)

    def has_target(self, store: Store, scan: int) -> bool:
        """Whether the column has a value for the scan."""
        return bool(self._values(store)[scan] != "")

    def classes_in(self, store: Store, scan: int) -> list[str]:
        """The class of the scan."""
        return [self.class_names(store)[self.target_of(store, scan)]]

    def weigh(self, store: Store, scans: np.ndarray, targets: Tensor) -> Tensor:
        """``Float[N]``: the weights of the classes of crops."""
        return torch.from_numpy(self.weights(store, scans)).float()[targets]

    def weights(self, store: Store, scans: np.ndarray) -> np.ndarray:
        """``Float[K]``: 1, or inversely proportional to the number of these scans in a class, with mean 1."""
        names = self.class_names(store)
        if self.class_weights == "none":
            return np.ones(len(names))
        counts = np.array([(self._values(store)[scans] == name).sum() for name in names])
        return balancing(counts)

    def target_of(self, store: Store, scan: int) -> int:
        """The class index of a scan."""
        return self.class_names(store).index(str(self._values(store)[scan]))

    def stratum(self, store: Store, scan: int) -> int:
        """The class index of a scan."""
        return self.target_of(store, scan)
