"""Attraction between scans of one class."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
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
from medcl3d.pairs.metadata_similarity import require_columns, without_missing


@PAIRS.register("class_labels", renamed={"together": "group_size"})
@dataclass(frozen=True, kw_only=True)
class ClassLabels:
    """Positives are views of scans with one label. M = 1 - P.

    column      column of the manifest: `class`, or a metadata column
    inner       the strategy that draws the views
    group_size  number of patients of one label that share a batch (1: no grouping)
    on_missing  a scan without a label. own_group: it attracts within its sample only; drop: it starts no
                sample; error: it is refused

    This strategy trains on labels: compare it with others on another task, or with equally many labels.
    Source: SupCon (Khosla et al., NeurIPS 2020, eq. 2).
    """

    column: str = "class"
    inner: choice_of(PAIRS) = Choice("augmented_views")  # type: ignore[valid-type]  # of the registry
    group_size: PositiveInt = 2
    on_missing: Literal["own_group", "drop", "error"] = "own_group"

    @cached_property
    def strategies(self) -> tuple[PairStrategy, ...]:
        """The strategy that draws the views."""
        with inside("class_labels", "inner"):
            return (PAIRS.build(self.inner),)

    @property
    def traits(self) -> StrategyTraits:
        """The traits: the label is the signal."""
        return StrategyTraits(
            signal_columns=(self.column,),
            batch_grouping=self._batch_grouping,
            inner_draws_only=True,
            on_missing=self.on_missing,
        )

    def anchors(self, collection: Collection) -> Anchors:
        """The anchors of the inner strategy, filtered by `on_missing`.

        DataError if labels are missing, all equal, or each has fewer than `group_size` patients.
        """
        require_columns("class_labels", collection, {self.column: "equal"})
        labels, patients = collection.column(self.column), collection.columns["patient"]
        pairs = set(zip(patients, labels, strict=True))
        most = max(Counter(label for _, label in pairs if label == label).values())  # NaN differs from itself
        if most < self.group_size:
            raise DataError(
                f"class_labels: group_size = {self.group_size} patients of one {self.column}, but no value "
                f"has more than {most}; lower group_size to {most}"
            )
        with inside("class_labels", "inner"):
            anchors = self.strategies[0].anchors(collection)
        return without_missing("class_labels", collection, (self.column,), self.on_missing, anchors)

    def _batch_grouping(self, collection: Collection) -> BatchGrouping | None:
        """Groups of patients with one label."""
        if self.group_size == 1:
            return None
        labels = collection.column(self.column)

        def affinity(scan: int) -> Float64[np.ndarray, " n"]:
            same: np.ndarray = (labels == labels[scan]).astype(np.float64)
            return same

        return BatchGrouping(self.group_size, affinity, collection.columns["patient"])

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """The views of the inner strategy."""
        return self.strategies[0].sample(collection, anchor, rng)

    def relate(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """P = 1 for equal labels and within the sample."""
        same_label = rows.column(self.column)[:, None] == cols.column(self.column)  # NaN equals nothing
        return related(rows, cols, same_label | (rows.sample[:, None] == cols.sample))
