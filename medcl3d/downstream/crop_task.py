"""The common part of tasks whose targets are those of crops: datasets, examples and evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from medcl3d.core.geometry import Box, Triple
from medcl3d.downstream.crop_dataset import (
    CropDataset,
    Example,
    Target,
    mean_outputs,
    random_crop,
    whole_scans,
)
from medcl3d.downstream.targets import Measurement
from medcl3d.downstream.task import Evaluation, not_finite
from medcl3d.sampling.plan import Plan
from medcl3d.store.store import Store
from medcl3d.views import ViewRecipe


class CropTask(ABC):
    """A task with one target per crop."""

    decodes: ClassVar[bool] = False

    @abstractmethod
    def check(self, store: Store) -> None:
        """ConfigError if the store lacks the targets."""

    @abstractmethod
    def has_target(self, store: Store, scan: int) -> bool:
        """Whether a scan of the store can train or test this task."""

    @abstractmethod
    def output(self, model: nn.Module, store: Store) -> Callable[[Tensor], Tensor]:
        """A function from crops ``[B, C, D, H, W]`` to probabilities or numbers ``[B, K]``."""

    @abstractmethod
    def measure(self, found: np.ndarray, examples: Sequence[Example], store: Store, seed: int) -> Measurement:
        """Metrics of outputs ``[N, K]`` with intervals over patients."""

    def stratum(self, store: Store, scan: int) -> int:
        """0: no strata."""
        return 0

    @abstractmethod
    def draw(
        self, store: Store, scan: int, patch_size: Triple, rng: np.random.Generator
    ) -> tuple[Box, Target]:
        """A crop of a training scan, and its target."""

    @abstractmethod
    def examples(self, store: Store, scans: Sequence[int], patch_size: Triple) -> list[Example]:
        """The examples of some scans: the same in every run."""

    def weigh(self, store: Store, scans: np.ndarray, targets: Tensor) -> Tensor:
        """Equal weights in the loss, shaped as the targets."""
        return torch.ones(targets.shape)

    def prepare_training(self, store: Store, scans: np.ndarray) -> None:
        """Prepare training on these scans. ConfigError, DataError if their targets do not vary."""
        self.check(store)

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
        """Crops of the scans of the plan. ConfigError, DataError if their targets do not vary."""
        self.prepare_training(store, np.unique(plan.anchors))
        return CropDataset(store, plan, self, patch_size, recipe, steps, rank, world_size)

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
        """Measure the outputs for the examples of the test scans; all ranks compute a part of them."""
        model.eval()
        examples = self.examples(store, scans, patch_size)
        outputs = mean_outputs(self.output(model, store), store, examples, device, dtype, on_all_ranks=True)
        if not np.isfinite(outputs).all():
            raise not_finite()
        return Evaluation(*self.measure(outputs, examples, store, seed), {})


class ScanTask(CropTask):
    """A task in which the target of a crop is that of its scan."""

    @abstractmethod
    def target_of(self, store: Store, scan: int) -> Target:
        """The target of a scan."""

    def draw(
        self, store: Store, scan: int, patch_size: Triple, rng: np.random.Generator
    ) -> tuple[Box, Target]:
        """A random crop of a training scan, and the target of the scan."""
        return random_crop(store, scan, patch_size, rng), self.target_of(store, scan)

    def examples(self, store: Store, scans: Sequence[int], patch_size: Triple) -> list[Example]:
        """One per scan: the crops that cover it."""
        examples = whole_scans(store, scans, patch_size)
        return [replace(example, target=self.target_of(store, example.scan)) for example in examples]
