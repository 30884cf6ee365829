"""Pair strategies, one per file.

A strategy never reads a voxel. `sample` chooses from the collection which views are drawn together; `relate`
decides from the keys of a batch which items attract, repel or are ignored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from medcl3d.config.registry import Registry

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
    from medcl3d.pairs.combinators import Exclude as Exclude
    from medcl3d.pairs.combinators import Product as Product
    from medcl3d.pairs.combinators import Sum as Sum
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

PAIRS = Registry("pair strategy", __name__)


class PairStrategy(Protocol):
    """The interface of a pair strategy.

    `informative` names the signal columns: the key columns that a placebo permutes.

    Optional attributes:

    relates_points    True: `relate` also accepts the keys of points, and the strategy's `num_points`,
                      `tolerance_mm` and `ignore_mm` replace those of a dense objective
    crosses_patients  True: a sample may hold scans of several patients, which a TorchIO subject cannot
                      represent
    informs           the parts of the relation ("positive", "negative") that carry the signal (default:
                      both). An objective that uses none of them is refused
    strategies        inner strategies
    link              ``(rows, cols, similarity) -> (rows, cols)``, called once per step: adds columns that
                      depend on features to `linked`. It needs the memory of all similarities, which a batch
                      otherwise avoids
    passes_link_on    True: `link` only calls the `link` of the inner strategies
    constant_across   key columns: two items that share a value in none of them have P = 0 and M = 1 (default:
                      unknown). It makes relating large batches faster
    queue_size        number of embeddings of earlier batches that are related as further columns
                      (`linked["support"]` is their position in the queue)
    detach_weights    False: the gradient goes through M too, and `relate` gets whole rows of similarities
                      that require a gradient
    temperature       the temperature that `link` assumes; an objective with another one is refused
    companions        ``(collection) -> BatchGrouping | None``: the batch grouping
    samples_per_scan  number of samples of one scan that share a batch
    within_scan       fields that only affect pairs of samples of one scan; reported if they cannot have an
                      effect
    inner_draws_only  True: the inner strategies draw the views, and their relations are not used
    """

    informative: ClassVar[tuple[str, ...]]

    def anchors(self, collection: Collection) -> Anchors:
        """The anchors of an epoch, with the reasons for which scans were left out."""

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """The views of one sample: first those of role "global", on the grid `collection.patch_size`."""

    def relate(self, rows: Keys, cols: Keys, similarity: Tensor | None) -> Relation:
        """The relation of rows and columns, for any tile ``[N, M]`` of the batch."""


def crosses_patients(strategy: PairStrategy) -> bool:
    """Whether one sample may hold scans of several patients."""
    own = getattr(strategy, "crosses_patients", None)
    return any(crosses_patients(part) for part in parts_of(strategy)) if own is None else bool(own)


def relates_points(strategy: PairStrategy) -> bool:
    """Whether `relate` accepts the keys of points."""
    return bool(getattr(strategy, "relates_points", False))


def link(strategy: PairStrategy, rows: Keys, cols: Keys, similarity: Tensor) -> tuple[Keys, Keys]:
    """Add the columns that a strategy derives from similarities ``[N, M]`` to the keys, without gradient."""
    own = getattr(strategy, "link", None)
    if own is None:
        return rows, cols
    linked: tuple[Keys, Keys] = own(rows, cols, similarity)
    return linked


def needs_features(strategy: PairStrategy) -> bool:
    """Whether a strategy, or one of its inner strategies, needs features to relate."""
    if not hasattr(strategy, "link"):
        return False
    if not getattr(strategy, "passes_link_on", False):
        return True
    return any(needs_features(part) for part in parts_of(strategy))


def parts_of(strategy: PairStrategy) -> tuple[PairStrategy, ...]:
    """The inner strategies of a strategy."""
    return tuple(getattr(strategy, "strategies", ()))


def all_parts(strategy: PairStrategy) -> tuple[PairStrategy, ...]:
    """A strategy and its inner strategies at all depths."""
    return strategy, *(inner for part in parts_of(strategy) for inner in all_parts(part))


def has_gradient_through_negatives(strategy: PairStrategy) -> bool:
    """Whether the gradient goes through the negative weights of a strategy or of an inner one."""
    return any(getattr(part, "detach_weights", True) is False for part in all_parts(strategy))


def queue_size(strategy: PairStrategy) -> int:
    """The size of the embedding queue that a strategy needs."""
    return max(getattr(part, "queue_size", 0) for part in all_parts(strategy))


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """A registered class or function, imported on first use."""
        from medcl3d.config.lazy import registered_attribute

        return registered_attribute(PAIRS, name)


def __dir__() -> list[str]:
    from medcl3d.config.lazy import registered_attributes

    return sorted({*globals(), *registered_attributes(PAIRS)})
