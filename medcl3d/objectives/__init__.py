"""What is minimised: one objective a file.

An objective is a module made from a network: it reads the network's widths, and may copy it (a teacher), but keeps none
of it. A step is `loss(embed(network, batch), relating)`, in the one call that DistributedDataParallel sees. `embed` is all
that needs a network, sample by sample; `loss` is what needs the whole batch, across ranks. So a batch that no memory
holds can be embedded in chunks and still have the loss of the whole (the gradient cache).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from medcl3d.registry import Registry

if TYPE_CHECKING:
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
    from medcl3d.types import Embedded, Loss, PairBatch

OBJECTIVES = Registry("objective", __name__)


class Objective(Protocol):
    """What every file of this package provides.

    uses       which parts of a Relation have an effect: "positive", "negative", "budget"
    decodes    True where the objective trains a decoder too
    dim        numbers of the vectors whose similarities a strategy is told; 0 where these are of several kinds, or of none

    An objective may also have

    before_step  ``(step, steps)``: what follows a schedule
    notes        ``(steps)``: lines to report before training, each a warning if it begins with `warning:`
    gate         ``(relate) -> relate`` of points, from that of the crops they lie in: it compares points
    queue_size   so many vectors of earlier batches are further columns
    after_step   ``(network)``: what follows the network, as a teacher does; after the optimiser's step
    """

    uses: ClassVar[frozenset[str]]
    decodes: ClassVar[bool]
    dim: int

    def embed(self, network: Network, batch: PairBatch) -> Embedded:
        """Views of all roles as vectors with their keys. No vector depends on what else is in the batch.

        Under the gradient cache it runs twice on the same chunk, so it changes nothing: what is to be kept of a step is
        for `loss`. What does depend on the batch says so: `batch_statistics = True` on the objective or a module of it.
        """

    def loss(self, embedded: Embedded, relating: Relating) -> Loss:
        """The loss of one rank's part of a global batch, scaled so that the mean over ranks is the global loss."""


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """A registered class or function, imported on first use."""
        from medcl3d.lazy import registered_attribute

        return registered_attribute(OBJECTIVES, name)


def __dir__() -> list[str]:
    from medcl3d.lazy import registered_attributes

    return sorted({*globals(), *registered_attributes(OBJECTIVES)})
