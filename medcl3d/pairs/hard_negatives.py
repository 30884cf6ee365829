"""What looks alike and should not repels more."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from medcl3d.config import choice_of
from medcl3d.data.collection import Collection
from medcl3d.pairs import PAIRS, PairStrategy, link, relates_points
from medcl3d.pairs.anchors import Anchors
from medcl3d.registry import Choice, NonNegative, Positive
from medcl3d.types import Keys, Relation, ViewSpec


@PAIRS.register("hard_negatives")
@dataclass(frozen=True, kw_only=True)
class HardNegatives:
    """M of the inner strategy, weighted by how similar a negative is, and debiased by the share of negatives that are none.

    inner          the strategy whose negatives are weighted
    concentration  beta: a negative counts by e^(beta s), relative to the anchor's mean; 0: all alike
    prior          tau: probability that a negative is of the anchor's class
    temperature    of the objective, which s = similarity / temperature is measured in

    With N negatives and s+ the similarity of the positive, an anchor's negatives sum to
    max(N e^(-1 / temperature), (sum of weighted M e^s - tau N e^(s+)) / (1 - tau)).
    Source: Robinson et al., ICLR 2021, eq. 4; the debiasing from Chuang et al., NeurIPS 2020, eq. 7.
    """

    inner: choice_of(PAIRS) = Choice("overlapping_crops")  # type: ignore[valid-type]
    concentration: NonNegative = 1.0
    prior: Annotated[float, Field(ge=0, lt=1)] = 0.0
    temperature: Positive = 0.1

    informs = frozenset({"negative"})

    @property
    def informative(self) -> tuple[str, ...]:
        """As the inner strategy."""
        return self.strategies[0].informative

    @cached_property
    def strategies(self) -> tuple[PairStrategy, ...]:
        """The inner one."""
        return (PAIRS.build(self.inner),)

    @property
    def relates_points(self) -> bool:
        """As the inner strategy."""
        return relates_points(self.strategies[0])

    @property
    def num_points(self) -> int:
        """Of the inner strategy."""
        return int(self.strategies[0].num_points)  # type: ignore[attr-defined]

    def anchors(self, collection: Collection) -> Anchors:
        """Those of the inner strategy."""
        return self.strategies[0].anchors(collection)

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """The views of the inner strategy."""
        return self.strategies[0].sample(collection, anchor, rng)

    def link(self, rows: Keys, cols: Keys, similarity: Tensor) -> tuple[Keys, Keys]:
        """Each row's `log_weight`: what e^(beta s) is multiplied with, debiasing included."""
        rows, cols = link(self.strategies[0], rows, cols, similarity)
        relation = self.strategies[0].relate(rows, cols, similarity)
        s = similarity.double() / self.temperature
        positive, negative = relation.positive.double(), relation.negative.double()
        number = negative.sum(1)
        # Weights that average to 1 over the row's negatives; all in logarithms, since e^s may be e^100.
        log_mean = torch.logsumexp(self.concentration * s + negative.log(), dim=1) - number.log()
        log_hard = torch.logsumexp((self.concentration + 1) * s + negative.log(), dim=1) - log_mean
        log_positive = torch.logsumexp(s + positive.log(), dim=1) - positive.sum(1).log()
        false = torch.exp(log_positive + number.log() - log_hard) * self.prior
        false = torch.where(positive.sum(1) > 0, false, 0.0).clamp(max=1)
        log_wanted = torch.maximum(log_hard + torch.log1p(-false) - np.log1p(-self.prior), number.log() - 1 / self.temperature)
        log_weight = torch.where(number > 0, log_wanted - log_hard - log_mean, 0.0)
        return replace(rows, linked={**rows.linked, "log_weight": log_weight}), cols

    def relate(self, rows: Keys, cols: Keys, similarity: Tensor | None) -> Relation:
        """M times e^(beta s) and the row's weight."""
        inner = self.strategies[0].relate(rows, cols, similarity)
        if similarity is None or "log_weight" not in rows.linked:
            return inner
        s = similarity.double() / self.temperature
        weight = torch.exp(self.concentration * s + rows.linked["log_weight"][:, None])
        return Relation(inner.positive, (inner.negative * weight).to(inner.negative.dtype), inner.budget)
