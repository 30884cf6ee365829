"""Pair strategies, one per file.

A strategy never reads a voxel. `sample` chooses from the collection which views are drawn together; `relate`
decides from the keys of a batch which items attract, repel or are ignored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from jaxtyping import Float

from medcl3d.config.registry import Registry
from medcl3d.pairs.traits import StrategyTraits as StrategyTraits
from medcl3d.pairs.traits import all_parts as all_parts
from medcl3d.pairs.traits import crosses_patients as crosses_patients
from medcl3d.pairs.traits import has_gradient_through_negatives as has_gradient_through_negatives
from medcl3d.pairs.traits import link as link
from medcl3d.pairs.traits import needs_features as needs_features
from medcl3d.pairs.traits import parts_of as parts_of
from medcl3d.pairs.traits import queue_size as queue_size
from medcl3d.pairs.traits import relates_points as relates_points
from medcl3d.pairs.traits import traits_of as traits_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from medcl3d.core.collection import Collection
    from medcl3d.core.geometry import ViewSpec
    from medcl3d.core.keys import Keys
    from medcl3d.core.relation import Relation
    from medcl3d.pairs.adjacent_slices import AdjacentSlices as AdjacentSlices
    from medcl3d.pairs.anchors import Anchors
    from medcl3d.pairs.augmented_views import AugmentedViews as AugmentedViews
    from medcl3d.pairs.body_position import BodyPosition as BodyPosition
    from medcl3d.pairs.class_labels import ClassLabels as ClassLabels
    from medcl3d.pairs.combinators import Product as Product
    from medcl3d.pairs.combinators import Sum as Sum
    from medcl3d.pairs.composed_kernels import ComposedKernels as ComposedKernels
    from medcl3d.pairs.cross_modality import CrossModality as CrossModality
    from medcl3d.pairs.cycle_voxels import CycleVoxels as CycleVoxels
    from medcl3d.pairs.exclude import Exclude as Exclude
    from medcl3d.pairs.hard_negatives import HardNegatives as HardNegatives
    from medcl3d.pairs.longitudinal import Longitudinal as Longitudinal
    from medcl3d.pairs.metadata_kernel import MetadataKernel as MetadataKernel
    from medcl3d.pairs.mirror_position import MirrorPosition as MirrorPosition
    from medcl3d.pairs.multi_crop import MultiCrop as MultiCrop
    from medcl3d.pairs.nearest_neighbours import NearestNeighbours as NearestNeighbours
    from medcl3d.pairs.overlapping_crops import OverlappingCrops as OverlappingCrops
    from medcl3d.pairs.physical_overlap import PhysicalOverlap as PhysicalOverlap
    from medcl3d.pairs.region_points import RegionPoints as RegionPoints
    from medcl3d.pairs.same_patient import SamePatient as SamePatient
    from medcl3d.pairs.slice_position import SlicePosition as SlicePosition
    from medcl3d.pairs.tabular_neighbours import TabularNeighbours as TabularNeighbours
    from medcl3d.pairs.time_decay import TimeDecay as TimeDecay
    from medcl3d.pairs.voxel_correspondence import VoxelCorrespondence as VoxelCorrespondence

PAIRS = Registry("pair strategy", __name__)


class PairStrategy(Protocol):
    """The interface of a pair strategy.

    A strategy with inner strategies also has `strategies` (`Composed`); one whose relation depends on
    features also has `link` (`Linking`). Both are in `traits.py`.
    """

    @property
    def traits(self) -> StrategyTraits:
        """The traits: a class variable, or a property if they depend on fields."""

    def anchors(self, collection: Collection) -> Anchors:
        """The anchors of an epoch, with the reasons for which scans were left out."""

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """The views of one sample: first those of role "global", on the grid `collection.patch_size`."""

    def relate(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """The relation of rows and columns, for any tile ``[N, M]`` of the batch."""


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """A registered class or function, imported on first use."""
        return PAIRS.attribute(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *PAIRS.attributes()})
