"""Training objectives, one per file.

An objective is a module built from a network: it reads the network's widths and may copy it (a momentum
encoder), but holds no reference to it. A step is `loss(embed(network, batch), relating)`, in one call of
DistributedDataParallel. `embed` runs the network on each sample independently; `loss` uses the whole batch,
across ranks. A batch that does not fit in memory can therefore be embedded in chunks, with the loss of the
whole batch (gradient cache).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast, runtime_checkable

from medcl3d.config.registry import Registry

if TYPE_CHECKING:
    from medcl3d.core.batch import PairBatch
    from medcl3d.core.embeddings import Embedded, Loss
    from medcl3d.core.relation import Relate
    from medcl3d.encoders.network import Network
    from medcl3d.objectives.barlow_twins import BarlowTwins as BarlowTwins
    from medcl3d.objectives.byol import BYOL as BYOL
    from medcl3d.objectives.dense import Dense as Dense
    from medcl3d.objectives.dino import DINO as DINO
    from medcl3d.objectives.distance_regression import DistanceRegression as DistanceRegression
    from medcl3d.objectives.global_dense import GlobalDense as GlobalDense
    from medcl3d.objectives.mae import MAE as MAE
    from medcl3d.objectives.mae_contrastive import MAEContrastive as MAEContrastive
    from medcl3d.objectives.moco import MoCo as MoCo
    from medcl3d.objectives.relating import Relating
    from medcl3d.objectives.simclr import SimCLR as SimCLR
    from medcl3d.objectives.simsiam import SimSiam as SimSiam
    from medcl3d.objectives.swav import SwAV as SwAV
    from medcl3d.objectives.vicreg import VICReg as VICReg

OBJECTIVES = Registry("objective", __name__, owner="objective.{}")


class Objective(Protocol):
    """The interface of an objective.

    uses       the parts of a Relation that have an effect: "positive", "negative", "budget"
    decodes    True: the objective trains a decoder too
    dim        dimension of the embeddings whose similarities a strategy gets; 0 if there are several kinds,
               or none

    Some objectives have further members: those of `Scheduled`, `FollowsNetwork`, `HasNotes`,
    `ComparesPoints`, `HasQueue`, `IgnoresQueue` and `HasTemperature`.
    """

    uses: ClassVar[frozenset[str]]
    decodes: ClassVar[bool]
    dim: int

    def embed(self, network: Network, batch: PairBatch) -> Embedded:
        """Embeddings of the views of all roles, with keys. No embedding depends on the rest of the batch.

        With the gradient cache it runs twice on each chunk, so it must not change state; `loss` updates
        state. An objective or module that does depend on the batch has the attribute `batch_statistics =
        True`.
        """

    def loss(self, embedded: Embedded, relating: Relating) -> Loss:
        """The loss of one rank's part of a batch, scaled so that its mean over ranks is the global loss."""


@runtime_checkable
class Scheduled(Protocol):
    """An objective with a schedule."""

    def before_step(self, step: int, steps: int) -> None:
        """Update schedules before step `step` of `steps`."""


@runtime_checkable
class FollowsNetwork(Protocol):
    """An objective with a state that follows the network, such as a momentum encoder."""

    def after_step(self, network: Network) -> None:
        """Update the state after the optimiser's step."""


@runtime_checkable
class HasNotes(Protocol):
    """An objective with notes on its settings."""

    def notes(self, steps: int) -> Sequence[str]:
        """Lines to report before training; one that begins with `warning:` is a warning."""


@runtime_checkable
class ComparesPoints(Protocol):
    """An objective that compares points."""

    def gate(self, relate: Relate) -> Relate:
        """The relation of points from that of their crops."""


@runtime_checkable
class HasQueue(Protocol):
    """An objective with `queue_size` embeddings of earlier batches as further columns."""

    queue_size: int


@runtime_checkable
class IgnoresQueue(Protocol):
    """An objective in whose loss the embedding queue of a strategy has no part."""

    ignores_queue: bool


@runtime_checkable
class HasTemperature(Protocol):
    """An objective that divides similarities by `temperature`."""

    temperature: float


def objective_type(name: str) -> type[Objective]:
    """The registered objective of a name, not built."""
    found: Any = OBJECTIVES.get(name)
    return cast("type[Objective]", found)


def queue_size_of(objective: Objective) -> int:
    """The size of an objective's own embedding queue."""
    return objective.queue_size if isinstance(objective, HasQueue) else 0


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """A registered class or function, imported on first use."""
        return OBJECTIVES.attribute(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *OBJECTIVES.attributes()})
