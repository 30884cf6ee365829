"""Corresponding points of two crops, and points of other patients that find each other by their features."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from medcl3d.config.field_types import Fraction, Positive
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation, related
from medcl3d.pairs import PAIRS, StrategyTraits
from medcl3d.pairs.pair_of_crops import PointsOfCrops
from medcl3d.pairs.traits import PROGRESS, Sums

HISTOGRAM_MM = (5, 10, 20)


@PAIRS.register("cycle_voxels")
@dataclass(frozen=True, kw_only=True)
class CycleVoxels(PointsOfCrops):
    """As voxel_correspondence within a patient; across patients P = alpha w for points that find each other.

    For a point a and each sample of another patient: b is the point most similar to a among those within
    `radius_mm` of a in body coordinates, a' the point of a's sample most similar to b, e = |a - a'| in mm,
    w = exp(-e^2 / 2 sigma^2). P = alpha w with b in all its views, M = 1 - P.

    alpha      attraction of a pair that returns to the same point
    sigma_mm   width of w
    radius_mm  largest distance of a and b in body coordinates
    start      share of the run without attraction across patients, while features are not reliable
    ramp       share of the run over which alpha then grows from 0, linearly
    num_points, tolerance_mm, ignore_mm  for points within a patient, as in voxel_correspondence
    min_iou, max_iou  overlap of the two crops of a sample

    Similarities are those of the embeddings that are trained, without gradient. Logged: `cycle_candidates`
    per point, the share of cycles that end within 5, 10 and 20 mm (`cycles_within_5mm`, ...), and
    `cycle_positive`, the attraction per point. Without points (an objective of views), P = 1 within the
    sample.
    Source: our own as a way to choose training pairs; the fixed-point matching is that which UAE (Bai et al.,
    arXiv 2311.15111) uses at inference.
    """

    alpha: Fraction = 0.5
    sigma_mm: Positive = 6.0
    radius_mm: Positive = 20.0
    start: Fraction = 0.3
    ramp: Fraction = 0.2

    @property
    def traits(self) -> StrategyTraits:
        """The traits: in a placebo the place that is searched is unrelated to the point."""
        return StrategyTraits(signal_columns=("body",), relates_points=True)

    def link(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"]) -> tuple[Keys, Keys]:
        """Link each column's `place` (its point in all views), and each row's cycles ``[N, S]``.

        `cycle_to`: the place b in each of S samples (-1: none); `cycle_mm`: e (NaN: none).
        """
        if cols.are_views:
            return rows, cols
        own, places = _Places.of(rows), _Places.of(cols)
        similar = _largest(similarity, places.of_item, len(places.sample))
        similar = _largest(similar.T, own.of_item, len(own.sample)).T
        to, error = self._cycles(own, places, similar)
        linked = {"cycle_to": to[own.of_item], "cycle_mm": error[own.of_item]}
        return (
            replace(rows, linked={**rows.linked, **linked}),
            replace(cols, linked={**cols.linked, "place": places.of_item}),
        )

    def _cycles(
        self, own: _Places, places: _Places, similar: Float[Tensor, "R Q"]
    ) -> tuple[Int64[Tensor, "R S"], Float64[Tensor, "R S"]]:
        """``Int[R, S]`` b and ``Float64[R, S]`` e of places `own`; similar: ``[R, Q]`` similarities."""
        apart = torch.cdist(own.body, places.body, compute_mode="donot_use_mm_for_euclid_dist")
        possible = (own.patient[:, None] != places.patient) & (apart < self.radius_mm)
        samples = torch.unique(places.sample)
        back = torch.zeros(similar.shape, dtype=torch.int64, device=similar.device)  # a' of each b
        for sample in torch.unique(own.sample):
            mine = (own.sample == sample).nonzero().flatten()
            back[mine] = mine[similar[mine].argmax(0)]
        to = torch.full((len(own.sample), len(samples)), -1, dtype=torch.int64, device=similar.device)
        masked = torch.where(possible, similar, -torch.inf)
        for column, sample in enumerate(samples):
            there = (places.sample == sample).nonzero().flatten()
            best, index = masked[:, there].max(1)
            to[:, column] = torch.where(best > -torch.inf, there[index], -1)
        returned = back.gather(1, to.clamp(min=0))
        error = (own.position_mm[:, None] - own.position_mm[returned]).norm(dim=2)
        return to, error.masked_fill(to < 0, torch.nan)

    def sums(self, rows: Keys) -> Sums:
        """Candidates per point, shares of cycles that end within some mm, attraction per point."""
        if "cycle_mm" not in rows.linked:
            return {}
        error = rows.linked["cycle_mm"]
        count = torch.full((), float(len(rows)), device=error.device)
        found = torch.isfinite(error).sum()
        return {
            "cycle_candidates": (found, count),
            **{f"cycles_within_{mm}mm": ((error <= mm).sum(), found) for mm in HISTOGRAM_MM},
            "cycle_positive": (self._weights(rows).sum(), count),
        }

    def _weights(self, rows: Keys) -> Float64[Tensor, "N S"]:
        """``Float64[N, S]``: alpha w of each row's cycles at this point of the run, 0 without a cycle."""
        weight = torch.exp(-(rows.linked["cycle_mm"] ** 2) / (2 * self.sigma_mm**2)).nan_to_num(0.0)
        if PROGRESS not in rows.linked:
            return self.alpha * weight
        done = rows.linked[PROGRESS][:, None]
        since = done - self.start
        share = (since / self.ramp).clamp(0, 1) if self.ramp else (since >= 0).double()
        return self.alpha * share * weight

    def relate(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """Correspondence within a patient, and the cycles across patients after `link`."""
        known = self.correspondence(rows, cols)
        if "cycle_to" not in rows.linked:
            return known
        place, to = cols.linked["place"], rows.linked["cycle_to"]
        # Weights by place, then by column; the last column is for rows without a cycle.
        number = int(torch.cat([place, to.flatten()]).max()) + 2
        by_place = torch.zeros((len(rows), number), dtype=torch.float64, device=to.device)
        by_place.scatter_(1, torch.where(to < 0, number - 1, to), self._weights(rows))
        across = by_place[:, place]
        positive = torch.maximum(known.positive.double(), across)
        return related(rows, cols, positive, torch.where(across > 0, 1 - across, known.negative.double()))


@dataclass(frozen=True)
class _Places:
    """The points of a batch, each once for all its views.

    of_item  ``Int[N]`` place of each item; the other columns have one row per place
    """

    of_item: Int[Tensor, " N"]
    sample: Int64[Tensor, " Q"]
    patient: Int64[Tensor, " Q"]
    position_mm: Float64[Tensor, "Q 3"]
    body: Float64[Tensor, "Q 3"]

    @staticmethod
    def of(keys: Keys) -> _Places:
        pairs, of_item = torch.unique(torch.stack([keys.sample, keys.point]), dim=1, return_inverse=True)
        first = torch.zeros(pairs.shape[1], dtype=torch.int64, device=of_item.device)
        first[of_item] = torch.arange(len(of_item), device=of_item.device)  # any view of the point
        return _Places(of_item, pairs[0], keys.patient[first], keys.position_mm[first], keys.body[first])


def _largest(
    similarity: Float[Tensor, "N M"], groups: Int[Tensor, " M"], number: int
) -> Float[Tensor, "N G"]:
    """``[N, G]``: the largest of the columns ``[N, M]`` of each group ``Int[M]``."""
    start = similarity.new_full((len(similarity), number), -torch.inf)
    return start.scatter_reduce(1, groups.expand(len(similarity), -1), similarity, "amax")
