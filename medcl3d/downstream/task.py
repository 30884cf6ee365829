"""What a task provides, and what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from medcl3d.core.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import Dataset

    from medcl3d.core.embeddings import Loss
    from medcl3d.core.geometry import Triple
    from medcl3d.encoders.network import Network
    from medcl3d.evaluation.statistics.intervals import Interval
    from medcl3d.sampling.plan import Plan
    from medcl3d.store.store import Store
    from medcl3d.views import ViewRecipe


@dataclass(frozen=True)
class Evaluation:
    """Results of a task on test patients.

    metrics   name -> mean over patients with its 95% interval
    cases     one row per measured case, plain values (None if a number is undefined)
    pictures  name -> ``uint8[H, W, 3]``
    few       class -> number of labelled training patients with it, for classes with few such patients
    """

    metrics: dict[str, Interval]
    cases: list[dict[str, Any]]
    pictures: dict[str, np.ndarray]
    few: dict[str, int] = field(default_factory=dict)


def not_finite() -> DataError:
    """The error of a network whose outputs are not all finite: NaN would count as the first class."""
    problem = "the network's outputs are not all finite"
    return DataError(problem=problem, remedy="use precision float32, or other weights")


class Task(Protocol):
    """Interface of a task; its fields are its configuration.

    decodes  True if the task needs a decoder

    Some tasks have further members: those of `HasClasses` and `DrawsEachStratumFirst`; and of `Probed`, in
    medcl3d.downstream.probes.
    """

    decodes: ClassVar[bool]

    def has_target(self, store: Store, scan: int) -> bool:
        """Whether a scan of the store can train or test this task."""

    def stratum(self, store: Store, scan: int) -> int:
        """Stratum of a scan, in proportion to which labelled patients are drawn; 0 if there are no strata."""

    def model(self, network: Network, store: Store) -> nn.Module:
        """The network with the head of this task."""

    def dataset(
        self,
        store: Store,
        plan: Plan,
        patch_size: Triple,
        recipe: ViewRecipe,
        steps: int,
        rank: int,
        world_size: int,
    ) -> Dataset[Any]:
        """Dataset whose item `step` is this rank's slice of batch `step`; anchors are scans of the store."""

    def loss(self, model: nn.Module, batch: Any, recipe: ViewRecipe) -> Loss:
        """Augment a batch on its device, call the model once, and return the loss."""

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
        """Evaluate a trained model on whole scans. Called on all ranks; the result of rank 0 is kept.

        dtype: as in autocast, None for float32; seed: of the bootstrap.
        """


@runtime_checkable
class HasClasses(Protocol):
    """A task with named classes."""

    def class_names(self, store: Store) -> Sequence[str] | Mapping[int, str]:
        """The names of the classes, in order; or label value -> name."""

    def classes_in(self, store: Store, scan: int) -> list[str]:
        """The names of the classes in a labelled scan."""


@runtime_checkable
class DrawsEachStratumFirst(Protocol):
    """A task whose labelled patients are drawn from every stratum once before any stratum twice."""

    each_stratum_first: ClassVar[bool]
