"""What is minimised: one objective a file.

An objective is a module made from a network (it reads the network's widths and keeps none of it). Its
`forward(network, batch, relating)` is the one call of a step that DistributedDataParallel sees; it groups
views by role itself, and exchanges what the loss needs across ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from medcl3d.registry import Registry

if TYPE_CHECKING:
    from medcl3d.encoders.network import Network
    from medcl3d.objectives.relating import Relating
    from medcl3d.types import Loss, PairBatch

OBJECTIVES = Registry("objective", __name__)


class Objective(Protocol):
    """What every file of this package provides.

    uses       which parts of a Relation have an effect: "positive", "negative", "budget"
    decodes    True where the objective trains a decoder too
    dim        numbers of the vectors whose similarities a strategy is told
    """

    uses: ClassVar[frozenset[str]]
    decodes: ClassVar[bool]
    dim: int

    def __call__(self, network: Network, batch: PairBatch, relating: Relating) -> Loss:
        """The loss of one rank's part of a global batch, scaled so that the mean over ranks is the global loss."""
