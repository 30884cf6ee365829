"""Exclusion of negatives: items that share a value, or are near each other in the body, do not repel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medcl3d.config.choices import choice_of
from medcl3d.config.field_types import Positive
from medcl3d.core.body_coordinates import BODY
from medcl3d.core.collection import Collection
from medcl3d.core.errors import ConfigError, DataError, inside
from medcl3d.core.geometry import ViewSpec
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation
from medcl3d.pairs import (
    PAIRS,
    PairStrategy,
    StrategyTraits,
    all_parts,
    crosses_patients,
    link,
    needs_features,
    relates_points,
    traits_of,
)
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.placebo import POINTS, SLICE
from medcl3d.pairs.traits import num_points_of, without_weighted_negatives

OF_SCANS = {"patient", "session", "session_days", "modality", "frame"}
"""Columns by which strategies choose scans of a patient: one whose signal is in one of them reads others
too."""


@PAIRS.register("exclude")
@dataclass(frozen=True, kw_only=True)
class Exclude:
    """M = 0 between items that share a column value, or are near each other in the body; P is unchanged.

    inner      the strategy whose negatives are excluded
    by         a column of the manifest (patient, modality, site, ...), or `body`; an item without a value
               keeps all its negatives
    nearer_mm  with `body`: items nearer than this in body coordinates do not repel

    The control, negatives removed at random, is the placebo: the column permuted among scans. There is none
    if the inner strategy reads the column too, since its positives would change.
    Source: false negatives of one patient or site, as in MMCL and GLCL (Chaitanya et al., NeurIPS 2020).
    """

    inner: choice_of(PAIRS)  # type: ignore[valid-type]  # of the registry
    by: str = "patient"
    nearer_mm: Positive | None = None

    def __post_init__(self) -> None:
        if (self.by == BODY) != (self.nearer_mm is not None):
            raise ConfigError("by", None, "body and nearer_mm belong together", "give both or neither")

    @cached_property
    def strategies(self) -> tuple[PairStrategy, ...]:
        """The inner strategy, built."""
        with inside("exclude", "inner"):
            return (without_weighted_negatives(PAIRS.build(self.inner), "exclude"),)

    @property
    def traits(self) -> StrategyTraits:
        """The traits: the column alone is the signal, so a placebo does not change the inner strategy."""
        return StrategyTraits(
            signal_columns=() if self._is_read_inside else (self.by,),
            signal_weights=frozenset({"negative"}),
            relates_points=relates_points(self.strategies[0]),
            needs_features=needs_features(self.strategies[0]),
        )

    @property
    def _is_read_inside(self) -> bool:
        """Whether the inner strategy reads the column too, also if it is not its signal."""
        inner = self.strategies[0]
        signal = {name for part in all_parts(inner) for name in traits_of(part).signal_columns}
        if self.by in signal or self.by == "frame":  # all positions in mm are those of a frame
            return True
        if self.by == "patient" and signal - {POINTS, SLICE}:  # relations and batches across patients
            return True
        return self.by in OF_SCANS and (bool(signal & OF_SCANS) or crosses_patients(inner))

    @property
    def num_points(self) -> int:
        """Of the inner strategy."""
        return num_points_of(self.strategies[0])

    def anchors(self, collection: Collection) -> Anchors:
        """The anchors of the inner strategy. DataError if the column does not exist."""
        if self.by != BODY and self.by not in collection.columns:
            raise DataError(
                f"exclude: by = {self.by}: the manifest has no such column; "
                f"choose from {', '.join(collection.columns)}, and {BODY}"
            )
        with inside("exclude", "inner"):
            return self.strategies[0].anchors(collection)

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """The views of the inner strategy."""
        return self.strategies[0].sample(collection, anchor, rng)

    def link(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"]) -> tuple[Keys, Keys]:
        """As the inner strategy."""
        return link(self.strategies[0], rows, cols, similarity)

    def relate(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """The inner relation, without repulsion between items with the same column value."""
        relation = self.strategies[0].relate(rows, cols, similarity)
        if self.nearer_mm is None:
            same = rows.column(self.by)[:, None] == cols.column(self.by)  # NaN equals nothing
        else:
            distance = torch.cdist(rows.body, cols.body, compute_mode="donot_use_mm_for_euclid_dist")
            same = distance < self.nearer_mm
        return replace(relation, negative=relation.negative * ~same)
