"""Stronger repulsion of negatives with similar embeddings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from medcl3d.config.choices import choice_of
from medcl3d.config.field_types import Choice, NonNegative, Positive
from medcl3d.core.collection import Collection
from medcl3d.core.errors import inside
from medcl3d.core.geometry import ViewSpec
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation
from medcl3d.pairs import PAIRS, PairStrategy, StrategyTraits, link, relates_points, traits_of
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.traits import REPELS, num_points_of


@PAIRS.register("hard_negatives")
@dataclass(frozen=True, kw_only=True)
class HardNegatives:
    """M of the inner strategy, weighted by similarity and debiased by the rate of false negatives.

    inner           the strategy whose negatives are weighted
    concentration   beta: a negative is weighted by e^(beta s), relative to the anchor's mean; 0: equal
                    weights
    prior           tau: probability that a negative is of the anchor's class
    temperature     the objective's temperature, in s = similarity / temperature
    detach_weights  true: weights and debiasing are constants of the loss; false: the gradient goes through
                    them too, as in the authors' code

    With N negatives and s+ the similarity of the positive, an anchor's negatives sum to
    max(N e^(-1 / temperature), (sum of weighted M e^s - tau N e^(s+)) / (1 - tau)).
    Both settings of detach_weights have the same loss and different gradients.
    Source: Robinson et al., ICLR 2021, eq. 4; the debiasing from Chuang et al., NeurIPS 2020, eq. 7.
    """

    inner: choice_of(PAIRS) = Choice("overlapping_crops")  # type: ignore[valid-type]  # of the registry
    concentration: NonNegative = 1.0
    prior: Annotated[float, Field(ge=0, lt=1)] = 0.0
    temperature: Positive = 0.1
    detach_weights: bool = True

    @cached_property
    def strategies(self) -> tuple[PairStrategy, ...]:
        """The inner strategy, built."""
        with inside("hard_negatives", "inner"):
            return (PAIRS.build(self.inner),)

    @property
    def num_points(self) -> int:
        """Of the inner strategy."""
        return num_points_of(self.strategies[0])

    @property
    def traits(self) -> StrategyTraits:
        """The traits: signal and points as the inner strategy."""
        return StrategyTraits(
            signal_columns=traits_of(self.strategies[0]).signal_columns,
            signal_weights=frozenset({"negative"}),
            relates_points=relates_points(self.strategies[0]),
            temperature=self.temperature,
            gradient_through_negatives=not self.detach_weights,
        )

    def anchors(self, collection: Collection) -> Anchors:
        """The anchors of the inner strategy."""
        with inside("hard_negatives", "inner"):
            return self.strategies[0].anchors(collection)

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """The views of the inner strategy."""
        return self.strategies[0].sample(collection, anchor, rng)

    def link(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"]) -> tuple[Keys, Keys]:
        """Link each row's `log_weight`: the logarithm of the factor of e^(beta s), including debiasing."""
        rows, cols = link(self.strategies[0], rows, cols, similarity)
        log_weight = self._log_weight(self._inner(rows, cols, similarity), similarity)
        return replace(rows, linked={**rows.linked, "log_weight": log_weight}), cols

    def _inner(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """The inner relation; M = 0 for items that the objective does not let repel."""
        inner = self.strategies[0].relate(rows, cols, similarity)
        repels = cols.linked.get(REPELS)
        return inner if repels is None else replace(inner, negative=inner.negative * repels)

    def _log_weight(self, inner: Relation, similarity: Float[Tensor, "N M"]) -> Float[Tensor, " N"]:
        """``Float64[N]`` from whole rows, in logarithms, since e^s may be e^100; its gradient is finite."""
        s = similarity.double() / self.temperature
        positive, negative = inner.positive.double(), inner.negative.double()
        has_positive, has_negative = positive.sum(1) > 0, negative.sum(1) > 0
        # Rows without a positive or a negative use weights of 1 here; the last lines replace their results.
        positive = torch.where(has_positive[:, None], positive, 1.0)
        negative = torch.where(has_negative[:, None], negative, 1.0)
        log_count = negative.sum(1).log()
        # Weights that average to 1 over the row's negatives.
        log_mean = torch.logsumexp(self.concentration * s + negative.log(), dim=1) - log_count
        log_hard = torch.logsumexp((self.concentration + 1) * s + negative.log(), dim=1) - log_mean
        log_target = log_hard
        if self.prior:
            log_positive = torch.logsumexp(s + positive.log(), dim=1) - positive.sum(1).log()
            log_false = log_positive + log_count - log_hard + np.log(self.prior)
            log_false = torch.where(has_positive, log_false, -torch.inf)
            some = log_false < 0
            rest = torch.log1p(-torch.exp(torch.where(some, log_false, -torch.inf)))
            log_target = log_hard + torch.where(some, rest, -torch.inf) - np.log1p(-self.prior)
        log_target = torch.maximum(log_target, log_count - 1 / self.temperature)
        return torch.where(has_negative, log_target - log_hard - log_mean, 0.0)

    def relate(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """M times e^(beta s) and the row's weight."""
        inner = self._inner(rows, cols, similarity)
        if similarity is None or "log_weight" not in rows.linked:
            return inner
        if self.detach_weights:
            similarity = similarity.detach()
        log_weight = rows.linked["log_weight"]
        if similarity.requires_grad:
            log_weight = self._log_weight(inner, similarity)
        log_weights = self.concentration * similarity.double() / self.temperature + log_weight[:, None]
        # A positive's weight, which has no effect, may be infinite, and 0 times infinity is NaN.
        weight = torch.exp(log_weights.masked_fill(inner.negative == 0, 0.0))
        return replace(inner, negative=(inner.negative * weight).to(inner.negative.dtype))
