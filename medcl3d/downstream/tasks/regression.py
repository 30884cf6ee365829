"""Regression: one number per scan, evaluated by absolute error and explained variance on test patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medcl3d.core.embeddings import Loss
from medcl3d.core.errors import ConfigError, inside
from medcl3d.core.geometry import Box, Triple
from medcl3d.distributed.collectives import all_mean
from medcl3d.downstream.crop_dataset import CropBatch, Example, random_crop, targets_of
from medcl3d.downstream.crop_task import ScanTask
from medcl3d.downstream.heads import Classifier
from medcl3d.downstream.targets import Measurement, case_rows, lacking, numbers, once_per_store, patients_of
from medcl3d.downstream.tasks import TASKS
from medcl3d.encoders.network import Network
from medcl3d.evaluation.metrics.regression import regression_metrics
from medcl3d.store.store import Store
from medcl3d.views import ViewRecipe


class Regressor(nn.Module):
    """A linear layer on normalised features; `mean` and `scale` convert its output to units of the target."""

    mean: Tensor
    scale: Tensor

    def __init__(self, network: Network):
        super().__init__()
        self.scores = Classifier(network, 1)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, D, H, W]`` -> standard units ``[B]``."""
        scores: Tensor = self.scores(x)
        return scores[:, 0]

    def in_units(self, x: Tensor) -> Tensor:
        """``[B, C, D, H, W]`` -> units of the target ``[B, 1]``."""
        scores: Tensor = self(x)
        return (scores.double() * self.scale + self.mean)[:, None]


@TASKS.register("regression")
@dataclass(frozen=True, kw_only=True)
class Regression(ScanTask):
    """Smooth L1 loss of a linear head on pooled features; the number of a scan is a column of the manifest.

    target  the column; scans with an empty value are used neither in training nor in testing

    The loss uses targets standardised by the mean and standard deviation of the labelled training scans.
    Training uses one random crop per scan. The prediction for a test scan is the mean over the fewest crops
    that cover it. Source of the loss: Girshick 2015, eq. 3.
    """

    target: str = "age"
    _units: dict[Path, tuple[float, float]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @once_per_store
    @inside("task", "regression", "target")
    def values(self, store: Store) -> np.ndarray:
        """``Float64[scans]``: the column, NaN if empty.

        ConfigError if the manifest lacks it, or a value is not a number.
        """
        where = f"task.regression.target = {self.target!r}"
        if self.target not in store.collection.table:
            raise ConfigError(problem=lacking(store, "such column"), place=where)
        return numbers(store, self.target, np.isfinite, where, "is not a number; correct the manifest")

    def check(self, store: Store) -> None:
        """ConfigError if the manifest lacks the column, or a value is not a number."""
        self.values(store)

    def has_target(self, store: Store, scan: int) -> bool:
        """Whether the column has a number for the scan."""
        return bool(np.isfinite(self.values(store)[scan]))

    def target_of(self, store: Store, scan: int) -> float:
        """The number of the scan."""
        return float(self.values(store)[scan])

    def model(self, network: Network, store: Store) -> Regressor:
        """The network with a linear head."""
        self.values(store)
        return Regressor(network)

    def prepare_training(self, store: Store, scans: np.ndarray) -> None:
        """Take the standard units from these scans. ConfigError if their numbers are all equal."""
        known = self.values(store)[scans]
        spread = float(known.std())
        if spread == 0:
            problem, remedy = f"all labelled scans have {known[0]:g}", "use more scans or another column"
            raise ConfigError("task.regression.target", self.target, problem, remedy)
        self._units[store.root] = float(known.mean()), spread

    def draw(
        self, store: Store, scan: int, patch_size: Triple, rng: np.random.Generator
    ) -> tuple[Box, float]:
        """A random crop of the scan, and the number of the scan in standard units."""
        mean, scale = self._units[store.root]
        return random_crop(store, scan, patch_size, rng), (self.target_of(store, scan) - mean) / scale

    def loss(self, model: nn.Module, batch: CropBatch, recipe: ViewRecipe) -> Loss:
        """Smooth L1 loss of the augmented crops of one rank."""
        found: Tensor = model(batch.augmented(recipe))
        with torch.autocast(found.device.type, enabled=False):
            value = F.smooth_l1_loss(found.float(), batch.targets.float())
        return Loss(value, {"loss": all_mean(value.detach())})

    def output(self, model: nn.Module, store: Store) -> Callable[[Tensor], Tensor]:
        """Numbers in units of the column, with the mean and scale of the training scans."""
        assert isinstance(model, Regressor), "the model of this task"
        if store.root in self._units:
            mean, scale = self._units[store.root]
            model.mean.fill_(mean)
            model.scale.fill_(scale)
        return model.in_units

    def measure(self, found: np.ndarray, examples: Sequence[Example], store: Store, seed: int) -> Measurement:
        """Mean absolute error and R2; one row per scan, its absolute error as `mae`."""
        predicted, truth = found[:, 0], targets_of(examples)
        rows = case_rows(store.collection.table.iloc[[example.scan for example in examples]])
        cases = [
            {**row, "true": t, "predicted": round(p, 6), "mae": round(abs(p - t), 6)}
            for row, t, p in zip(rows, truth.tolist(), predicted.tolist(), strict=True)
        ]
        return regression_metrics(predicted, truth, patients_of(rows), seed), cases
