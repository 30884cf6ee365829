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
from medcl3d.sampling.augment import make_views
from medcl3d.sampling.raw_batch import RawBatch

MAX_POINTS = 96
QUANTILES = (0.1, 0.5, 0.9)
PLACES = ("within the sample", "other samples of the scan", "other scans of the patient", "other patients")
WITHIN = 0  # index into PLACES


@dataclass(frozen=True)
class PairFacts:
    """The items of one batch and their relation, before any training.

    items     "views" or "points"
    names     ``sample.view`` (or ``sample.view.point``) of each item
    keys      keys of the items
    relation  relation of the items, ``[N, N]``
    counts    the counts that training logs
    spread    title -> one value per pair of views of one sample: IoU, mm between centres (body coordinates
              across frames), days
    """

    items: str
    names: tuple[str, ...]
    keys: Keys
    relation: Relation
    counts: dict[str, float]
    spread: dict[str, np.ndarray]

    def lines(self) -> list[str]:
        """The counts as lines of text."""
        labels = {
            "positives_per_anchor": "positives per anchor",
            "anchors_without_positive": "anchors without a positive",
            "effective_negatives": "effective negatives",
            "fraction_ignored": "fraction ignored",
            "mean_positive": "mean P",
            "mean_negative": "mean M",
        }
        return [
            f"{f'{self.items} in the batch':<28}{len(self.names)}",
            *(f"{text:<28}{self.counts[key]:.3g}" for key, text in labels.items()),
        ]


def facts_of(raw: RawBatch, relating: Relating, recipe: object) -> PairFacts:
    """The facts of this rank's batch, without communication and without features, which do not exist yet."""
    views = raw.keys
    keys, items = views, "views"
    if raw.points is not None:
        keys, items = point_keys(make_views(raw, recipe).main, raw.points), "points"
        valid = torch.isfinite(keys.position_mm).all(1).nonzero().flatten()
        # The first points of every sample, each in all views.
        per_view = max(1, MAX_POINTS // len(raw.main.keys))
        keys = keys[valid[keys.point[valid] < per_view]]
    relation = relating.relate(keys, keys, None)
    columns = ("sample", "view") if items == "views" else ("sample", "view", "point")
    names = tuple(
        ".".join(str(int(getattr(keys, column)[i])) for column in columns) for i in range(len(keys))
    )
    counted = {name: float(value) for name, value in counts(relation, total=lambda sums: sums).items()}
    return PairFacts(items, names, keys, relation, counted, spread_of(views))


def spread_of(keys: Keys) -> dict[str, np.ndarray]:
    """IoU, mm and days between the views of a sample; empty if undefined."""
    first, second = torch.triu(keys.sample[:, None] == keys.sample, diagonal=1).nonzero().unbind(1)
    one_frame = keys.frame[first] == keys.frame[second]
    gap = (keys.session_days[first] - keys.session_days[second]).abs()

    def numbers(values: Tensor) -> np.ndarray:
        return values[torch.isfinite(values)].numpy()

    return {
        "IoU": numbers(iou_mm(keys, keys)[first, second][one_frame]),
        "mm between centres": numbers(_distance(keys, "views")[first, second]),
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
    """Distances of all pairs of some batches, without relations of features, as in `PairFacts`."""
    columns = []
    for facts in batches:
        keys, relation = facts.keys, facts.relation
        numbers = (
            relation.positive,
            relation.negative,
            _distance(keys, facts.items),
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


def _distance(keys: Keys, items: str) -> Tensor:
    """``Float64[N, N]`` mm between centres or points."""
    exact = "donot_use_mm_for_euclid_dist"
    position = keys.center_mm if items == "views" else keys.position_mm
    one_frame = keys.frame[:, None] == keys.frame
    return torch.where(
        one_frame,
        torch.cdist(position, position, compute_mode=exact),
        torch.cdist(keys.body, keys.body, compute_mode=exact),
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
