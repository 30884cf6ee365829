"""How far apart the positives and the negatives of a strategy are, over several batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from medcl3d.pairs.boxes import iou_mm
from medcl3d.training.pair_facts import PairFacts
from medcl3d.types import Keys

QUANTILES = (0.1, 0.5, 0.9)
WITHIN = 0  # of the places
PLACES = ("within the sample", "other samples of the scan", "other scans of the patient", "other patients")


@dataclass(frozen=True)
class Spread:
    """Quantiles (10%, 50%, 90%) over pairs, each counting by its weight; None if no pair has any.

    mm   distance of the centres or points: in world mm within a frame, else in body coordinates
    iou  of the views' boxes; across frames as if all axes were those of the body. None for points
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
    """Where the weight of a strategy's relation lies.

    within     pairs of one sample that attract, weighted by P
    beyond     pairs of two samples that attract, weighted by P
    negatives  pairs that repel, weighted by M
    shares     share of the positive weight in each of `PLACES`
    """

    within: Spread
    beyond: Spread
    negatives: Spread
    shares: tuple[float, ...]

    def lines(self) -> list[str]:
        """Lines of text, each median (10% to 90%)."""
        return [
            f"positives within the sample: {self.within}",
            f"positives beyond the sample: {self.beyond}",
            f"negatives: {self.negatives}",
            f"positive weight: {', '.join(f'{share:.0%} {place}' for share, place in zip(self.shares, PLACES, strict=True))}",
        ]


def distances_of(batches: Iterable[PairFacts]) -> PairDistances:
    """The distances of all pairs of some batches; what depends on features is left out, as in `PairFacts`."""
    columns = []
    for facts in batches:
        keys, relation = facts.keys, facts.relation
        numbers = (
            relation.positive,
            relation.negative,
            _distance(keys, facts.what),
            _overlap(keys, facts.what),
            _place(keys),
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


def _distance(keys: Keys, what: str) -> Tensor:
    """``Float64[N, N]`` mm between centres or points."""
    exact = "donot_use_mm_for_euclid_dist"
    place = keys.center_mm if what == "views" else keys.position_mm
    one_frame = keys.frame[:, None] == keys.frame
    return torch.where(
        one_frame,
        torch.cdist(place, place, compute_mode=exact),
        torch.cdist(keys.body, keys.body, compute_mode=exact),
    )


def _overlap(keys: Keys, what: str) -> Tensor:
    """``Float64[N, N]`` IoU of the views' boxes; NaN for points, which have none."""
    if what == "points":
        return torch.full((len(keys), len(keys)), torch.nan)
    axes = torch.eye(3, dtype=torch.float64).expand(len(keys), 3, 3)
    in_body = replace(keys, center_mm=keys.body, axes=axes, frame=torch.zeros_like(keys.frame))
    return torch.where(keys.frame[:, None] == keys.frame, iou_mm(keys, keys), iou_mm(in_body, in_body))


def _place(keys: Keys) -> Tensor:
    """``Int[N, N]``: which of `PLACES` a pair belongs to."""
    same = [column[:, None] == column for column in (keys.sample, keys.scan, keys.patient)]
    return torch.where(same[0], 0, torch.where(same[1], 1, torch.where(same[2], 2, 3)))


def _quantiles(values: np.ndarray, weights: np.ndarray) -> tuple[float, ...] | None:
    use = (weights > 0) & np.isfinite(values)
    if not use.any():
        return None
    order = np.argsort(values[use], kind="stable")
    reached = np.cumsum(weights[use][order])
    places = np.minimum(np.searchsorted(reached, np.array(QUANTILES) * reached[-1]), len(order) - 1)
    return tuple(float(value) for value in values[use][order][places])
