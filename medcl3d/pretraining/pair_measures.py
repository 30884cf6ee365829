"""The relation of batches before any training: counts, overlap and distance of positives and negatives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation
from medcl3d.objectives.dense import point_keys
from medcl3d.objectives.diagnostics import counts
from medcl3d.objectives.relating import Relating
from medcl3d.pairs.boxes import iou_mm
from medcl3d.pretraining.relation_of_features import RelationOfFeatures
from medcl3d.sampling.augment import make_views
from medcl3d.sampling.raw_batch import RawBatch

MAX_POINTS = 96
MIN_P = 0.01  # of an attracted pair in counts and pictures: kernels are never quite 0
TEXTS = {
    "attract": "attracts",
    "budget": "attracts beyond a distance",
    "ignore": "ignores",
    "repel": "repels",
}
KINDS = tuple(TEXTS)
QUANTILES = (0.1, 0.5, 0.9)
PLACES = ("within the sample", "other samples of the scan", "other scans of the patient", "other patients")
WITHIN = 0  # index into PLACES


@dataclass(frozen=True)
class PairFacts:
    """The items of one batch and their relation, before any training.

    items       "views" or "points"
    keys        keys of the items
    relation    relation of the items to the columns, ``[N, M]``
    counts      the counts that training logs
    spread      title -> one value per pair of views of one sample: IoU, mm between centres (body coordinates
                across frames), days
    queued      keys of the columns after the items: those of an embedding queue (None: no queue)
    similarity  ``[N, M]`` of features; None if the relation does not depend on features
    """

    items: str
    keys: Keys
    relation: Relation
    counts: dict[str, float]
    spread: dict[str, np.ndarray]
    queued: Keys | None = None
    similarity: Tensor | None = None

    @property
    def columns(self) -> Keys:
        """The keys of the columns: the items, then those of the queue."""
        return self.keys if self.queued is None else Keys.cat([self.keys, self.queued])

    def kinds(self) -> Tensor:
        """``Int[N, M]``: index into `KINDS` for each pair; -1 for an item and itself."""
        positive, negative, budget = self.relation.positive, self.relation.negative, self.relation.budget
        kinds = torch.full(positive.shape, KINDS.index("repel"))
        kinds[(positive == 0) & (negative == 0)] = KINDS.index("ignore")
        kinds[positive >= MIN_P] = KINDS.index("attract")
        if budget is not None:
            kinds[torch.isfinite(budget)] = KINDS.index("budget")
        kinds[self.keys.same_item(self.columns)] = -1
        return kinds

    def lines(self) -> list[str]:
        """The counts in words, as lines of text; numbers per anchor are means."""
        kinds, others = self.kinds(), self.relation.positive.shape[1] - 1
        number = {name: float((kinds == i).sum()) / len(kinds) for i, name in enumerate(KINDS)}
        samples, patients = (len(torch.unique(ids)) for ids in (self.keys.sample, self.keys.patient))
        lines = [f"{len(kinds)} {self.items}: {samples} samples, {patients} patients"]
        if self.queued is not None:
            lines.append(f"{len(self.queued)} {self.items} of earlier batches in the queue")
        lines.append(f"of {others} others, an anchor on average")
        for name, text in TEXTS.items():
            if number[name] or name in ("attract", "repel"):
                lines.append(f"  {text}: {number[name]:.3g}")
        sums = [self.counts["positives_per_anchor"], self.counts["effective_negatives"]]
        if not np.allclose(sums, [number["attract"], number["repel"]]):
            lines.append(f"sum of weights: P {sums[0]:.3g}, M {sums[1]:.3g}")
        without = self.counts["anchors_without_positive"]
        return [*lines, f"anchors without a positive: {without:g}"]


def facts_of(
    raw: RawBatch,
    relating: Relating,
    recipe: object,
    features: RelationOfFeatures | None = None,
    max_points: int = MAX_POINTS,
) -> PairFacts:
    """The facts of this rank's batch, without communication.

    features    for strategies that depend on features; without it, what they add to a relation is missing
    max_points  about as many points are compared: the first of every sample, each in all views
    """
    batch, keys, items, valid = make_views(raw, recipe), raw.keys, "views", None
    shown = torch.arange(len(keys))
    if raw.points is not None:
        keys, items = point_keys(batch.main, raw.points), "points"
        valid = torch.isfinite(keys.position_mm).all(1).nonzero().flatten()
        keys = keys[valid]
        shown = (keys.point < max(1, max_points // len(raw.main.keys))).nonzero().flatten()
    if features is None:
        keys = keys[shown]
        relation, queued, similarity = relating.relate(keys, keys, None), None, None
    else:
        found = features(batch, keys, valid)
        chosen = torch.cat([shown, torch.arange(len(keys), len(found.columns))])
        columns = replace(found.columns, linked={})
        queued = columns[len(keys) :] if len(columns) > len(keys) else None
        weights = found.relation
        budget = None if weights.budget is None else weights.budget[shown][:, chosen]
        relation = Relation(weights.positive[shown][:, chosen], weights.negative[shown][:, chosen], budget)
        keys, similarity = keys[shown], found.similarity[shown][:, chosen]
    counted = {name: float(value) for name, value in counts(relation, total=lambda sums: sums).items()}
    return PairFacts(items, keys, relation, counted, spread_of(raw.keys), queued, similarity)


def spread_of(keys: Keys) -> dict[str, np.ndarray]:
    """IoU, mm and days between the views of a sample; empty if undefined."""
    first, second = torch.triu(keys.sample[:, None] == keys.sample, diagonal=1).nonzero().unbind(1)
    one_frame = keys.frame[first] == keys.frame[second]
    gap = (keys.session_days[first] - keys.session_days[second]).abs()

    def numbers(values: Tensor) -> np.ndarray:
        return values[torch.isfinite(values)].numpy()

    return {
        "IoU": numbers(iou_mm(keys, keys)[first, second][one_frame]),
        "mm between centres": numbers(distance_of_pairs(keys, keys, "views")[first, second]),
        "days between visits": numbers(gap[keys.scan[first] != keys.scan[second]]),
    }


@dataclass(frozen=True)
class Spread:
    """Weighted quantiles (10%, 50%, 90%) over pairs; None if no pair has a weight.

    mm   distance between centres or points: in world mm within a frame, else in body coordinates
    iou  IoU of the boxes of views; across frames computed with the axes of the body. None for points
    """

    mm: tuple[float, ...] | None
    iou: tuple[float, ...] | None

    def __str__(self) -> str:
        if self.mm is None:
            return "none"
        text = f"{self.mm[1]:.0f} mm apart ({self.mm[0]:.0f} to {self.mm[2]:.0f})"
        return (
            text
            if self.iou is None
            else f"{text}, IoU {self.iou[1]:.2f} ({self.iou[0]:.2f} to {self.iou[2]:.2f})"
        )


@dataclass(frozen=True)
class PairDistances:
    """Distances of the pairs that a strategy relates.

    within     attracting pairs of one sample, weighted by P
    beyond     attracting pairs of two samples, weighted by P
    negatives  repelling pairs, weighted by M
    shares     fraction of the positive weight in each of `PLACES`
    """

    within: Spread
    beyond: Spread
    negatives: Spread
    shares: tuple[float, ...]

    def lines(self) -> list[str]:
        """Lines of text; distances as median (10% to 90%)."""
        shares = (f"{share:.0%} {origin}" for share, origin in zip(self.shares, PLACES, strict=True))
        return [
            f"positives within the sample: {self.within}",
            f"positives beyond the sample: {self.beyond}",
            f"negatives: {self.negatives}",
            f"positive weight: {', '.join(shares)}",
        ]


def distances_of(batches: Iterable[PairFacts]) -> PairDistances:
    """Distances of all pairs of items of some batches, without the columns of a queue."""
    columns = []
    for facts in batches:
        keys, relation = facts.keys, facts.relation
        numbers = (
            relation.positive[:, : len(keys)],
            relation.negative[:, : len(keys)],
            distance_of_pairs(keys, keys, facts.items),
            _overlap(keys, facts.items),
            place_of_pairs(keys, keys),
        )
        columns.append(torch.stack([number.double().flatten() for number in numbers]))
    positive, negative, mm, iou, place = torch.cat(columns, 1).numpy()

    def spread(weights: np.ndarray) -> Spread:
        return Spread(_quantiles(mm, weights), _quantiles(iou, weights))

    total = max(positive.sum(), np.finfo(float).tiny)
    return PairDistances(
        spread(positive * (place == WITHIN)),
        spread(positive * (place != WITHIN)),
        spread(negative),
        tuple(float(positive[place == number].sum() / total) for number in range(len(PLACES))),
    )


def distance_of_pairs(rows: Keys, cols: Keys, items: str) -> Tensor:
    """``Float64[N, M]`` mm between centres or points, in body coordinates across frames."""
    exact = "donot_use_mm_for_euclid_dist"
    name = "center_mm" if items == "views" else "position_mm"
    return torch.where(
        rows.frame[:, None] == cols.frame,
        torch.cdist(getattr(rows, name), getattr(cols, name), compute_mode=exact),
        torch.cdist(rows.body, cols.body, compute_mode=exact),
    )


def _overlap(keys: Keys, items: str) -> Tensor:
    """``Float64[N, N]`` IoU of the boxes of views; NaN for points."""
    if items == "points":
        return torch.full((len(keys), len(keys)), torch.nan)
    axes = torch.eye(3, dtype=torch.float64).expand(len(keys), 3, 3)
    in_body = replace(keys, center_mm=keys.body, axes=axes, frame=torch.zeros_like(keys.frame))
    return torch.where(keys.frame[:, None] == keys.frame, iou_mm(keys, keys), iou_mm(in_body, in_body))


def place_of_pairs(rows: Keys, cols: Keys) -> Tensor:
    """``Int[N, M]``: index into `PLACES` for each pair."""
    columns = ("sample", "scan", "patient")
    same = [getattr(rows, name)[:, None] == getattr(cols, name) for name in columns]
    return torch.where(same[0], 0, torch.where(same[1], 1, torch.where(same[2], 2, 3)))


def _quantiles(values: np.ndarray, weights: np.ndarray) -> tuple[float, ...] | None:
    used = (weights > 0) & np.isfinite(values)
    if not used.any():
        return None
    order = np.argsort(values[used], kind="stable")
    cumulative = np.cumsum(weights[used][order])
    positions = np.minimum(np.searchsorted(cumulative, np.array(QUANTILES) * cumulative[-1]), len(order) - 1)
    return tuple(float(value) for value in values[used][order][positions])
