"""Classification: one class per scan, evaluated by area under the ROC curve and accuracy on test patients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medcl3d.core.embeddings import Loss
from medcl3d.core.errors import ConfigError, inside
from medcl3d.core.geometry import Box, Triple
from medcl3d.distributed.collectives import all_mean
from medcl3d.downstream.crop_dataset import (
    CropBatch,
    CropDataset,
    Example,
    answers,
    random_crop,
    whole_scans,
)
from medcl3d.downstream.heads import Classifier
from medcl3d.downstream.probes import Labelled, Probe, check_classes
from medcl3d.downstream.targets import balancing, case_rows, lacking, once_per_store, patients_of
from medcl3d.downstream.task import Evaluation
from medcl3d.downstream.tasks import TASKS
from medcl3d.encoders.network import Network
from medcl3d.evaluation.metrics.classification import classification_metrics
from medcl3d.evaluation.statistics.intervals import Interval
from medcl3d.sampling.plan import Plan
from medcl3d.store.store import Store
from medcl3d.views import ViewRecipe

MAX_CLASSES = 100


class CropClassification(ABC):
    """Common part of tasks with one class per crop; a task defines the crops and their classes."""

    decodes: ClassVar[bool] = False

    @abstractmethod
    def class_names(self, store: Store) -> tuple[str, ...]:
        """The classes in the order of their indices."""

    @abstractmethod
    def has_target(self, store: Store, scan: int) -> bool:
        """Whether a scan of the store can train or test this task."""

    @abstractmethod
    def draw(self, store: Store, scan: int, patch_size: Triple, rng: np.random.Generator) -> tuple[Box, int]:
        """A box of a training scan and the index of its class."""

    @abstractmethod
    def examples(self, store: Store, scans: Sequence[int], patch_size: Triple) -> list[Example]:
        """The examples to classify by a trained or frozen network: the same in every run."""

    @abstractmethod
    def classes_in(self, store: Store, scan: int) -> list[str]:
        """The classes in a labelled scan."""

    def stratum(self, store: Store, scan: int) -> int:
        """0: no strata."""
        return 0

    def check(self, store: Store) -> None:
        """ConfigError if the store lacks the classes."""
        self.class_names(store)

    def weights(self, store: Store, scans: np.ndarray) -> np.ndarray:
        """``Float[K]``: the weight of each class in the loss."""
        return np.ones(len(self.class_names(store)))

    def weigh(self, store: Store, scans: np.ndarray, targets: Tensor) -> Tensor:
        """``Float[N]``: the weights of the classes of crops."""
        return torch.from_numpy(self.weights(store, scans)).float()[targets]

    def labels(self, store: Store, examples: Sequence[Example]) -> np.ndarray:
        """``Int64[N]``: the class indices of examples."""
        return np.array([example.target for example in examples])

    def probe_metrics(
        self,
        probe: Probe,
        known: Labelled,
        features: np.ndarray,
        examples: Sequence[Example],
        store: Store,
        seed: int,
    ) -> tuple[dict[str, Interval], list[dict[str, Any]]]:
        """Metrics of a probe on the test examples, and one row per example.

        DataError if its training examples have one class.
        """
        names = self.class_names(store)
        check_classes(known, names)
        return measured(probe.probabilities(known, features, len(names), seed), examples, names, store, seed)

    def model(self, network: Network, store: Store) -> Classifier:
        """The network with a linear head."""
        return Classifier(network, len(self.class_names(store)))

    def dataset(
        self,
        store: Store,
        plan: Plan,
        patch_size: Triple,
        recipe: ViewRecipe,
        steps: int,
        rank: int,
        world_size: int,
    ) -> CropDataset:
        """Crops of the scans of the plan."""
        return CropDataset(store, plan, self, patch_size, recipe, steps, rank, world_size)

    def loss(self, model: nn.Module, batch: CropBatch, recipe: ViewRecipe) -> Loss:
        """Weighted cross-entropy of the augmented crops of one rank."""
        logits: Tensor = model(batch.augmented(recipe))
        with torch.autocast(logits.device.type, enabled=False):
            # Weights have mean 1 over the scans: dividing by their sum in a batch would let a batch of one
            # class ignore them.
            value = (batch.weights * F.cross_entropy(logits.float(), batch.targets, reduction="none")).mean()
        accuracy = (logits.argmax(1) == batch.targets).float().mean()
        return Loss(value, {"loss": all_mean(value.detach()), "training_accuracy": all_mean(accuracy)})

    def evaluate(
        self,
        model: nn.Module,
        store: Store,
        scans: Sequence[int],
        patch_size: Triple,
        device: torch.device,
        dtype: torch.dtype | None,
        seed: int,
    ) -> Evaluation:
        """AUROC, balanced accuracy and accuracy of the examples of the test scans."""
        model.eval()
        examples = self.examples(store, scans, patch_size)
        probabilities = answers(lambda crops: model(crops).float().softmax(1), store, examples, device, dtype)
        metrics, cases = measured(probabilities, examples, self.class_names(store), store, seed)
        return Evaluation(metrics, cases, {})


def measured(
    probabilities: np.ndarray, examples: Sequence[Example], names: Sequence[str], store: Store, seed: int
) -> tuple[dict[str, Interval], list[dict[str, Any]]]:
    """Metrics of ``probabilities [N, K]`` with intervals over patients, and one row per example."""
    rows = case_rows(store.collection.table.iloc[[example.scan for example in examples]])
    targets = np.array([example.target for example in examples])
    cases = [
        {
            **row,
            "class": names[target],
            "predicted": names[int(shares.argmax())],
            "probability": round(float(shares[target]), 6),
        }
        for row, target, shares in zip(rows, targets.tolist(), probabilities, strict=True)
    ]
    return classification_metrics(probabilities, targets, patients_of(rows), seed), cases


@TASKS.register("classification")
@dataclass(frozen=True, kw_only=True)
class Classification(CropClassification):
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
        return [self.class_names(store)[self.stratum(store, scan)]]

    def stratum(self, store: Store, scan: int) -> int:
        """The class index of a scan."""
        return self.class_names(store).index(str(self._values(store)[scan]))

    def weights(self, store: Store, scans: np.ndarray) -> np.ndarray:
        """1, or inversely proportional to the number of these scans in a class, with mean 1 over the
        scans.
        """
        names = self.class_names(store)
        if self.class_weights == "none":
            return np.ones(len(names))
        counts = np.array([(self._values(store)[scans] == name).sum() for name in names])
        return balancing(counts)

    def draw(self, store: Store, scan: int, patch_size: Triple, rng: np.random.Generator) -> tuple[Box, int]:
        """A random crop of the scan, and the class of the scan."""
        return random_crop(store, scan, patch_size, rng), self.stratum(store, scan)

    def examples(self, store: Store, scans: Sequence[int], patch_size: Triple) -> list[Example]:
        """One per scan: the crops that cover it."""
        examples = whole_scans(store, scans, patch_size)
        return [replace(example, target=self.stratum(store, example.scan)) for example in examples]
