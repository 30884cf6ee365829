"""The nearest embeddings of earlier batches attract too."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from medcl3d.config import choice_of
from medcl3d.data.collection import Collection
from medcl3d.pairs import PAIRS, PairStrategy, link
from medcl3d.pairs.anchors import Anchors
from medcl3d.registry import Choice, Count
from medcl3d.types import Keys, Relation, ViewSpec


@PAIRS.register("nearest_neighbours")
@dataclass(frozen=True, kw_only=True)
class NearestNeighbours:
    """P = 1 with the `k` items of the embedding queue nearest to the other views of the sample; the rest of it is ignored.

    k           neighbours of each item
    queue_size  so many embeddings of earlier batches are kept, with their keys
    inner       the strategy that draws the views, and relates those of one batch

    The neighbours of a view's partners are its positives, as in NNCLR, where a view is contrasted with the neighbour
    of the other one; unlike there, the views of a sample attract too, so that the first batches have a positive.
    Source: NNCLR (Dwibedi et al., ICCV 2021, eq. 1 and 3).
    """

    k: Count = 1
    queue_size: Count = 1024
    inner: choice_of(PAIRS) = Choice("augmented_views")  # type: ignore[valid-type]

    informative = ()

    @cached_property
    def strategies(self) -> tuple[PairStrategy, ...]:
        """The one that draws."""
        return (PAIRS.build(self.inner),)

    def anchors(self, collection: Collection) -> Anchors:
        """Those of the inner strategy."""
        return self.strategies[0].anchors(collection)

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """The views of the inner strategy."""
        return self.strategies[0].sample(collection, anchor, rng)

    def link(self, rows: Keys, cols: Keys, similarity: Tensor) -> tuple[Keys, Keys]:
        """Each row's `neighbours` ``Int[N, k]``, places in the queue (-1: there are not so many yet)."""
        rows, cols = link(self.strategies[0], rows, cols, similarity)
        places = cols.linked["support"]
        kept = places >= 0
        # The other views of a sample, or of a point of it.
        partner = (rows.sample[:, None] == rows.sample) & (rows.view[:, None] != rows.view) & (rows.point[:, None] == rows.point)
        share = partner.to(similarity.dtype) / partner.sum(1, keepdim=True).clamp(min=1)
        nearest = (share @ similarity[:, kept]).topk(min(self.k, int(kept.sum())), dim=1).indices
        found = torch.full((len(rows), self.k), -1, dtype=torch.int64, device=similarity.device)
        found[:, : nearest.shape[1]] = torch.where(partner.any(1, keepdim=True), places[kept][nearest], -1)
        return replace(rows, linked={**rows.linked, "neighbours": found}), cols

    def relate(self, rows: Keys, cols: Keys, similarity: Tensor | None) -> Relation:
        """The inner relation within the batch; P = 1 with the neighbours in the queue."""
        inner = self.strategies[0].relate(rows, cols, similarity)
        if "neighbours" not in rows.linked:
            return inner
        places = cols.linked["support"]
        near = (rows.linked["neighbours"][:, :, None] == places).any(1) & (places >= 0)
        positive = torch.where(places >= 0, near.to(inner.positive.dtype), inner.positive)
        return Relation(positive, torch.where(places >= 0, 0.0, inner.negative))
