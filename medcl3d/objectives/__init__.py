"""Training objectives, one per file.

An objective is a module built from a network: it reads the network's widths and may copy it (a momentum
encoder), but holds no reference to it. A step is `loss(embed(network, batch), relating)`, in one call of
DistributedDataParallel. `embed` runs the network on each sample independently; `loss` uses the whole batch,
across ranks. A batch that does not fit in memory can therefore be embedded in chunks, with the loss of the
whole batch (gradient cache).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from medcl3d.config.registry import Registry

if TYPE_CHECKING:
    from medcl3d.core.batch import PairBatch
    from medcl3d.core.embeddings import Embedded, Loss
    from medcl3d.encoders.network import Network
    from medcl3d.objectives.barlow_twins import BarlowTwins as BarlowTwins
    from medcl3d.objectives.byol import BYOL as BYOL
    from medcl3d.objectives.dense import Dense as Dense
    from medcl3d.objectives.dino import DINO as DINO
    from medcl3d.objectives.global_dense import GlobalDense as GlobalDense
    from medcl3d.objectives.mae import MAE as MAE
    from medcl3d.objectives.mae_contrastive import MAEContrastive as MAEContrastive
    from medcl3d.objectives.moco import MoCo as MoCo
    from medcl3d.objectives.relating import Relating
    from medcl3d.objectives.simclr import SimCLR as SimCLR
    from medcl3d.objectives.simsiam import SimSiam as SimSiam
    from medcl3d.objectives.swav import SwAV as SwAV
    from medcl3d.objectives.vicreg import VICReg as VICReg

OBJECTIVES = Registry("objective", __name__)


class Objective(Protocol):
    """The interface of an objective.

    uses       the parts of a Relation that have an effect: "positive", "negative", "budget"
    decodes    True: the objective trains a decoder too
    dim        dimension of the embeddings whose similarities a strategy gets; 0 if there are several kinds,
               or none

    Optional attributes:

    before_step  ``(step, steps)``: updates of schedules
    notes        ``(steps)``: lines to report before training, each a warning if it begins with `warning:`
    gate         ``(relate) -> relate``: the relation of points from that of their crops; its presence means
                 that the objective compares points
    queue_size   number of embeddings of earlier batches that are further columns
    after_step   ``(network)``: updates that follow the network, such as a momentum encoder, after the
                 optimiser's step
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


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """A registered class or function, imported on first use."""
        from medcl3d.config.lazy import registered_attribute

        return registered_attribute(OBJECTIVES, name)


def __dir__() -> list[str]:
    from medcl3d.config.lazy import registered_attributes

    return sorted({*globals(), *registered_attributes(OBJECTIVES)})
