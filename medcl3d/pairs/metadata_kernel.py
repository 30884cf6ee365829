"""Attraction weighted by metadata similarity."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from medcl3d.config.choices import choice_of
from medcl3d.config.field_types import Choice, PositiveInt
from medcl3d.core.collection import Collection
from medcl3d.core.errors import DataError, inside
from medcl3d.core.geometry import ViewSpec
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation, related
from medcl3d.pairs import PAIRS, PairStrategy, StrategyTraits
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.batch_grouping import BatchGrouping
from medcl3d.pairs.metadata_similarity import (
    Combine,
    Kernels,
    require_columns,
    similarity_between,
    similarity_of,
    without_missing,
)


@PAIRS.register("metadata_kernel", renamed={"together": "group_size"})
@dataclass(frozen=True, kw_only=True)
class MetadataKernel:
    """P is a kernel on metadata: RBF for numbers, equality for categories; P = 1 within a sample, M = 1 - P.

    columns     column -> bandwidth of its RBF kernel exp(-d^2 / 2 b^2) in the column's unit, or `equal`
    combine     product or mean of the columns' kernels
    inner       the strategy that draws the views
    group_size  number of patients with similar metadata that share a batch (1: no grouping)
    on_missing  a missing value. ignore: the column drops out of a pair, and P = 0 if none is left; own_group:
                the scan attracts within its sample only; drop: the scan starts no sample; error: it is
                refused

    P is not normalised here: the loss normalises rows, over each anchor's own positives, and never columns.
    Source: y-Aware InfoNCE (Dufumier et al., MICCAI 2021, eq. 3), EIDOS (Barbano et al., ISBI 2023).
    """

    columns: Kernels
    combine: Combine = "product"
    inner: choice_of(PAIRS) = Choice("augmented_views")  # type: ignore[valid-type]  # of the registry
    group_size: PositiveInt = 1
    on_missing: Literal["ignore", "own_group", "drop", "error"] = "ignore"

    @cached_property
    def strategies(self) -> tuple[PairStrategy, ...]:
        """The strategy that draws the views."""
        with inside("metadata_kernel", "inner"):
            return (PAIRS.build(self.inner),)

    @property
    def traits(self) -> StrategyTraits:
        """The traits: the columns are the signal."""
        return StrategyTraits(
            signal_columns=tuple(self.columns),
            batch_grouping=self._batch_grouping,
            inner_draws_only=True,
            on_missing=self.on_missing,
        )

    def anchors(self, collection: Collection) -> Anchors:
        """The inner strategy's anchors, filtered by `on_missing`. DataError for unusable columns."""
        require_columns("metadata_kernel", collection, self.columns)
        require_patients("metadata_kernel", collection, self.group_size)
        with inside("metadata_kernel", "inner"):
            anchors = self.strategies[0].anchors(collection)
        return without_missing("metadata_kernel", collection, self.columns, self.on_missing, anchors)

    def _batch_grouping(self, collection: Collection) -> BatchGrouping | None:
        """Groups of patients with similar metadata; None if `group_size` is 1."""
        if self.group_size == 1:
            return None
        all_scans = np.arange(len(collection))

        def affinity(scan: int) -> Float64[np.ndarray, " n"]:
            one, how = all_scans[[scan]], (self.columns, self.combine, self.on_missing)
            similar: np.ndarray = similarity_between(collection, one, all_scans, *how)[0]
            return similar

        return BatchGrouping(self.group_size, affinity, collection.columns["patient"])

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """The views of the inner strategy."""
        return self.strategies[0].sample(collection, anchor, rng)

    def relate(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """P = the kernel, 1 within the sample; M = 1 - P."""
        same_sample = rows.sample[:, None] == cols.sample
        kernel = similarity_of(rows, cols, self.columns, self.combine, self.on_missing)
        return related(rows, cols, torch.where(same_sample, 1.0, kernel))


def require_patients(strategy: str, collection: Collection, group_size: int) -> None:
    """DataError if the collection has fewer patients than the group size `group_size`."""
    patients = len(np.unique(collection.columns["patient"]))
    if patients < group_size:
        raise DataError(
            f"{strategy}: group_size = {group_size} patients, but the collection has {patients}; "
            f"lower group_size to {patients}"
        )
