"""Nearest neighbours in an embedding queue as further positives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medcl3d.config.choices import choice_of
from medcl3d.config.field_types import Choice, PositiveInt
from medcl3d.core.collection import Collection
from medcl3d.core.errors import inside
from medcl3d.core.geometry import ViewSpec
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation
from medcl3d.pairs import PAIRS, PairStrategy, StrategyTraits, link
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.traits import SUPPORT, queued_items, without_weighted_negatives


@PAIRS.register("nearest_neighbours")
@dataclass(frozen=True, kw_only=True)
class NearestNeighbours:
    """P = 1 with the `k` queue items nearest to the sample's other views; the other queue items are ignored.

    k           neighbours per item
    queue_size  embeddings of earlier batches that are kept, with their keys
    inner       the strategy that draws the views and relates those of one batch

    The neighbours of a view's partners are its positives, as in NNCLR, which contrasts a view with the
    neighbour of the other view. Unlike in NNCLR, the views of a sample attract too, so that the first batches
    have positives.
    Source: NNCLR (Dwibedi et al., ICCV 2021, eq. 1 and 3).
    """

    k: PositiveInt = 1
    queue_size: PositiveInt = 1024
    inner: choice_of(PAIRS) = Choice("augmented_views")  # type: ignore[valid-type]  # of the registry

    @cached_property
    def strategies(self) -> tuple[PairStrategy, ...]:
        """The strategy that draws the views."""
        with inside("nearest_neighbours", "inner"):
            return (without_weighted_negatives(PAIRS.build(self.inner), "nearest_neighbours"),)

    @property
    def traits(self) -> StrategyTraits:
        """The traits: an embedding queue."""
        return StrategyTraits(queue_size=self.queue_size)

    def anchors(self, collection: Collection) -> Anchors:
        """The anchors of the inner strategy."""
        with inside("nearest_neighbours", "inner"):
            return self.strategies[0].anchors(collection)

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """The views of the inner strategy."""
        return self.strategies[0].sample(collection, anchor, rng)

    def link(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"]) -> tuple[Keys, Keys]:
        """Link each row's `neighbours` ``Int[N, k]``, positions in the queue (-1: it holds fewer than k)."""
        rows, cols = link(self.strategies[0], rows, cols, similarity)
        positions = cols.linked[SUPPORT]
        queued = queued_items(positions)
        # The other views of a sample, or the same point in them.
        partner = (rows.sample[:, None] == rows.sample) & (rows.view[:, None] != rows.view)
        partner &= rows.point[:, None] == rows.point
        weight = partner.to(similarity.dtype) / partner.sum(1, keepdim=True).clamp(min=1)
        nearest = (weight @ similarity[:, queued]).topk(min(self.k, len(queued)), dim=1).indices
        neighbours = torch.full((len(rows), self.k), -1, dtype=torch.int64, device=similarity.device)
        has_partner = partner.any(1, keepdim=True)
        neighbours[:, : nearest.shape[1]] = torch.where(has_partner, positions[queued][nearest], -1)
        return replace(rows, linked={**rows.linked, "neighbours": neighbours}), cols

    def relate(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """The inner relation within the batch; P = 1 with the neighbours in the queue."""
        inner = self.strategies[0].relate(rows, cols, similarity)
        if "neighbours" not in rows.linked:
            return inner
        positions = cols.linked[SUPPORT]
        queued = positions >= 0
        near = (rows.linked["neighbours"][:, :, None] == positions).any(1) & queued
        positive = torch.where(queued, near.to(inner.positive.dtype), inner.positive)
        budget = None if inner.budget is None else inner.budget.masked_fill(queued, torch.nan)
        return Relation(positive, torch.where(queued, 0.0, inner.negative), budget)
