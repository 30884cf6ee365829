"""Which views belong together: one strategy a file.

A strategy answers two questions and never touches a voxel: which views are drawn together (`sample`, over
the collection), and which items of a batch attract, repel or are ignored (`relate`, over their keys).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from medcl3d.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from medcl3d.data.collection import Collection
    from medcl3d.pairs.adjacent_slices import AdjacentSlices as AdjacentSlices
    from medcl3d.pairs.anchors import Anchors
    from medcl3d.pairs.augmented_views import AugmentedViews as AugmentedViews
    from medcl3d.pairs.body_position import BodyPosition as BodyPosition
    from medcl3d.pairs.class_labels import ClassLabels as ClassLabels
    from medcl3d.pairs.compose import Exclude as Exclude
    from medcl3d.pairs.compose import Product as Product
    from medcl3d.pairs.compose import Sum as Sum
    from medcl3d.pairs.cross_modality import CrossModality as CrossModality
    from medcl3d.pairs.hard_negatives import HardNegatives as HardNegatives
    from medcl3d.pairs.longitudinal import Longitudinal as Longitudinal
    from medcl3d.pairs.metadata_kernel import MetadataKernel as MetadataKernel
    from medcl3d.pairs.multi_crop import MultiCrop as MultiCrop
    from medcl3d.pairs.nearest_neighbours import NearestNeighbours as NearestNeighbours
    from medcl3d.pairs.overlapping_crops import OverlappingCrops as OverlappingCrops
    from medcl3d.pairs.physical_overlap import PhysicalOverlap as PhysicalOverlap
    from medcl3d.pairs.same_patient import SamePatient as SamePatient
    from medcl3d.pairs.slice_position import SlicePosition as SlicePosition
    from medcl3d.pairs.tabular_neighbours import TabularNeighbours as TabularNeighbours
    from medcl3d.pairs.voxel_correspondence import VoxelCorrespondence as VoxelCorrespondence
    from medcl3d.types import Keys, Relation, ViewSpec

PAIRS = Registry("pair strategy", __name__)


class PairStrategy(Protocol):
    """What every file of this package provides.

    `informative` names the key columns that carry the strategy's information: what a placebo permutes.

    A strategy may say more of itself:

    relates_points    True: `relate` also understands the keys of points, and its fields `num_points`, `tolerance_mm` and
                      `ignore_mm` hold for dense objectives
    crosses_patients  True: its samples hold scans of several patients, which a TorchIO subject cannot feed
    informs           the parts of its relation, of "positive" and "negative", that carry its information (default: both):
                      an objective that uses none of them is refused
    strategies        those that it is made of
    link              ``(rows, cols, similarity) -> (rows, cols)``, once a step: what needs features, as columns of `linked`. It costs
                      the memory of all similarities, which a batch is otherwise spared
    passes_link_on    True: its link does nothing but call those of its parts
    constant_across   key columns: two items that share a value in none of them have P = 0 and M = 1 (default: not known). Large
                      batches are related faster with it
    queue_size        so many embeddings of earlier batches are related as further columns (`linked["support"]` is their place)
    detach_weights    False: the gradient goes through its M too. `relate` then gets whole rows of similarities that
                      require a gradient
    temperature       what its link divides similarities by: the objective's, or it is refused
    companions        ``(collection) -> Companions | None``: which scans stand together in a batch
    samples_per_scan  so many samples of each scan stand together in a batch
    within_scan       fields that only say which samples of one scan repel each other: reported if they cannot have an effect
    inner_draws_only  True: its parts draw the views, and their relations are not used
    """

    informative: ClassVar[tuple[str, ...]]

    def anchors(self, collection: Collection) -> Anchors:
        """What an epoch visits; what was left out, and why."""

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """The views of one sample: those of role "global" on the grid `collection.patch_size`, and first."""

    def relate(self, rows: Keys, cols: Keys, similarity: Tensor | None) -> Relation:
        """How rows and columns relate, for any tile ``[N, M]`` of the things in play."""


def crosses_patients(strategy: PairStrategy) -> bool:
    """Whether one sample may hold scans of several patients."""
    own = getattr(strategy, "crosses_patients", None)
    return any(crosses_patients(part) for part in parts_of(strategy)) if own is None else bool(own)


def relates_points(strategy: PairStrategy) -> bool:
    """Whether `relate` understands points."""
    return bool(getattr(strategy, "relates_points", False))


def link(strategy: PairStrategy, rows: Keys, cols: Keys, similarity: Tensor) -> tuple[Keys, Keys]:
    """The keys with what a strategy has to know of the features ``[N, M]``; without gradient, once a step."""
    own = getattr(strategy, "link", None)
    if own is None:
        return rows, cols
    linked: tuple[Keys, Keys] = own(rows, cols, similarity)
    return linked


def looks_at_features(strategy: PairStrategy) -> bool:
    """Whether it, or a part of it, links something to features."""
    if not hasattr(strategy, "link"):
        return False
    return not getattr(strategy, "passes_link_on", False) or any(looks_at_features(part) for part in parts_of(strategy))


def parts_of(strategy: PairStrategy) -> tuple[PairStrategy, ...]:
    """The strategies that one is made of."""
    return tuple(getattr(strategy, "strategies", ()))


def every_part(strategy: PairStrategy) -> tuple[PairStrategy, ...]:
    """A strategy, what it is made of, and what those are made of."""
    return strategy, *(inner for part in parts_of(strategy) for inner in every_part(part))


def learns_through_weights(strategy: PairStrategy) -> bool:
    """Whether the gradient goes through the negative weights of a strategy, or of a part of it."""
    return any(getattr(part, "detach_weights", True) is False for part in every_part(strategy))


def queue_size(strategy: PairStrategy) -> int:
    """How many earlier embeddings a strategy wants to be told of."""
    return max(getattr(part, "queue_size", 0) for part in every_part(strategy))


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """A registered class or function, imported on first use."""
        from medcl3d.lazy import registered_attribute

        return registered_attribute(PAIRS, name)


def __dir__() -> list[str]:
    from medcl3d.lazy import registered_attributes

    return sorted({*globals(), *registered_attributes(PAIRS)})
