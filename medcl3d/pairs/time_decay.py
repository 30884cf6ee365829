"""Two visits of one patient: features may differ by a budget that grows with the time between them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medcl3d.config.field_types import NonNegative, Positive
from medcl3d.core.collection import Collection
from medcl3d.core.geometry import ViewSpec
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation, related
from medcl3d.pairs import PAIRS, StrategyTraits
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.longitudinal import Longitudinal

DAYS_PER_YEAR = 365.25
SIGNAL = {"budget": {"budget"}, "decay": {"positive"}, "ignore": set[str]()}  # by `across`


@PAIRS.register("time_decay")
@dataclass(frozen=True, kw_only=True)
class TimeDecay:
    """Two crops of one visit attract; visits dt apart attract only beyond a budget b(dt) of cosine distance.

    Across the two visits of a sample P = M = 0, and `weight` times the mean of max(0, 1 - cos - b)^2 over
    such pairs is added to the loss: b = budget + per_year dt / 365.25 days. Visits need not become identical.

    budget, per_year    distance 1 - cos that two visits may have on one day, and what a year adds
    weight              of the pairs with a budget in the loss
    across              pairs of two visits. budget: as above; decay: P = exp(-days / time_constant_days) and
                        M = 1 - P without a budget; ignore: none (both are controls with the same draws)
    time_constant_days  of the control `across: decay`
    max_gap_days        visits farther apart are not drawn together (default: no limit)
    jitter_mm           largest offset of the second visit's crop from the corresponding position

    A sample has four views: a crop of one visit twice, and the corresponding crop of another visit in the
    same modality twice, each augmented on its own. P = 1 between the two views of a visit. Other pairs of the
    patient are ignored; other patients repel. Visits are distinguished as in `longitudinal`.
    Logged: `budget_excess`, the mean of max(0, 1 - cos - b)^2, and `pairs_with_budget`. To choose the budget,
    train with `budget: 0, per_year: 0`: the root of `budget_excess` over scan-rescan pairs is their distance.
    Source: our own; close to TINC (Emre et al., MICCAI 2022, arXiv 2206.15282), in which the margin is on the
    invariance term of VICReg.
    """

    budget: NonNegative = 0.05
    per_year: NonNegative = 0.1
    weight: Positive = 1.0
    across: Literal["budget", "decay", "ignore"] = "budget"
    time_constant_days: Positive = 365.0
    max_gap_days: Positive | None = None
    jitter_mm: NonNegative = 0.0

    num_views: ClassVar[int] = 4

    @cached_property
    def _visits(self) -> Longitudinal:
        return Longitudinal(max_gap_days=self.max_gap_days, jitter_mm=self.jitter_mm)

    @property
    def traits(self) -> StrategyTraits:
        """The traits: the days of visits are the signal, unless their pairs are ignored."""
        return StrategyTraits(
            signal_columns=() if self.across == "ignore" else ("session_days",),
            signal_weights=frozenset(SIGNAL[self.across] or {"positive", "negative"}),
            constant_across=("sample", "patient"),
            budget_weight=self.weight if self.across == "budget" else 0.0,
        )

    def anchors(self, collection: Collection) -> Anchors:
        """Scans with another visit of their patient in their modality. DataError if no scan has one."""
        return self._visits.anchors(collection)

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """A crop of scan `anchor` and the corresponding crop of another visit, each twice."""
        first, second = self._visits.sample(collection, anchor, rng)
        return first, first, second, second

    def relate(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """P = 1 within a visit of the sample; its two visits by `across`; other patients repel."""
        same_patient = rows.patient[:, None] == cols.patient
        same_sample = same_patient & (rows.sample[:, None] == cols.sample)
        visit = same_sample & (rows.scan[:, None] == cols.scan)
        visits = same_sample & ~visit
        days = (rows.session_days[:, None] - cols.session_days).abs()
        if self.across == "decay":
            known = visits & ~days.isnan()
            positive = torch.where(known, torch.exp(-days / self.time_constant_days), visit.double())
            return related(rows, cols, positive, torch.where(same_patient & ~known, 0.0, 1 - positive))
        relation = related(rows, cols, visit, ~same_patient)
        if self.across == "ignore":
            return relation
        budget = (self.budget + self.per_year * days / DAYS_PER_YEAR).float()  # NaN for unknown days
        return replace(relation, budget=budget.masked_fill(~visits, torch.nan))
