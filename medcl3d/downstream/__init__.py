"""What a pretrained network is measured on: one task a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from medcl3d.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import Dataset

    from medcl3d.data.loader import Plan
    from medcl3d.data.store import Store
    from medcl3d.encoders.network import Network
    from medcl3d.evaluation.statistics import Interval
    from medcl3d.types import Loss, Triple

TASKS = Registry("task", __name__)


@dataclass(frozen=True)
class Evaluation:
    """What a task found on test patients.

    metrics   name -> mean over patients with its 95% interval
    cases     one row a thing measured, plain values (None where a number is not defined)
    pictures  name -> ``uint8[H, W, 3]``
    few       class -> how many labelled training patients have it, of the classes that few have
    """

    metrics: dict[str, Interval]
    cases: list[dict[str, Any]]
    pictures: dict[str, np.ndarray]
    few: dict[str, int] = field(default_factory=dict)


class Task(Protocol):
    """What every task of this package provides; its fields are its configuration.

    decodes             True where the task needs a decoder
    classes_in          (may be absent; with class_names) the names of the classes that a labelled scan holds
    each_stratum_first  (may be absent) True where few labelled patients are to hold one of every stratum before two of any
    """

    decodes: ClassVar[bool]

    def has_target(self, store: Store, scan: int) -> bool:
        """Whether a scan of the store can train or test this task."""

    def stratum(self, store: Store, scan: int) -> int:
        """The kind of a scan, of which few labelled patients are to hold a share; 0 where all are alike."""

    def model(self, network: Network, store: Store) -> nn.Module:
        """The network with this task's head."""

    def dataset(self, store: Store, plan: Plan, patch_size: Triple, recipe: Any, steps: int, rank: int, world_size: int) -> Dataset[Any]:
        """Item `step` is this rank's slice of global batch `step`; a plan's anchors are scans of the store."""

    def loss(self, model: nn.Module, batch: Any, recipe: Any) -> Loss:
        """Augment a batch on its device, call the model once, and return what to descend."""

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
        """Measure a trained model on whole scans; `dtype` as in autocast, None for float32; `seed` is the bootstrap's."""
